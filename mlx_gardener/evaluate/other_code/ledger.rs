//! A ledger of a village shop: every sale is booked twice, and the books must balance at the end of the day.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerError {
    Unbalanced { debit: i64, credit: i64 },
    UnknownAccount(String),
    EmptyEntry,
}

impl fmt::Display for LedgerError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerError::Unbalanced { debit, credit } => {
                write!(out, "debit {debit} and credit {credit} differ")
            }
            LedgerError::UnknownAccount(name) => write!(out, "there is no account {name:?}"),
            LedgerError::EmptyEntry => write!(out, "an entry needs at least two lines"),
        }
    }
}

impl std::error::Error for LedgerError {}

#[derive(Debug, Clone)]
pub struct Line {
    pub account: String,
    pub cents: i64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    balances: BTreeMap<String, i64>,
    entries: usize,
}

impl Ledger {
    pub fn with_accounts<I, S>(names: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let balances = names.into_iter().map(|name| (name.into(), 0)).collect();
        Ledger { balances, entries: 0 }
    }

    /// Book an entry, or nothing of it.
    pub fn book(&mut self, lines: &[Line]) -> Result<usize, LedgerError> {
        if lines.len() < 2 {
            return Err(LedgerError::EmptyEntry);
        }
        let debit: i64 = lines.iter().map(|line| line.cents.max(0)).sum();
        let credit: i64 = lines.iter().map(|line| (-line.cents).max(0)).sum();
        if debit != credit {
            return Err(LedgerError::Unbalanced { debit, credit });
        }
        if let Some(line) = lines.iter().find(|line| !self.balances.contains_key(&line.account)) {
            return Err(LedgerError::UnknownAccount(line.account.clone()));
        }
        for line in lines {
            *self.balances.entry(line.account.clone()).or_insert(0) += line.cents;
        }
        self.entries += 1;
        Ok(self.entries)
    }

    pub fn balance(&self, account: &str) -> Option<i64> {
        self.balances.get(account).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unbalanced_entry_changes_nothing() {
        let mut ledger = Ledger::with_accounts(["till", "apples"]);
        let lines = [
            Line { account: "till".into(), cents: 250 },
            Line { account: "apples".into(), cents: -200 },
        ];
        assert_eq!(ledger.book(&lines), Err(LedgerError::Unbalanced { debit: 250, credit: 200 }));
        assert_eq!(ledger.balance("till"), Some(0));
    }
}
