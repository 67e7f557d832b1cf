//! A bank of seeds: samples are stored by species, tested now and then, and handed out while enough of them sprout.

use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    pub day: u32,
    pub sown: u32,
    pub sprouted: u32,
}

impl Test {
    pub fn rate(&self) -> f64 {
        if self.sown == 0 {
            0.0
        } else {
            f64::from(self.sprouted) / f64::from(self.sown)
        }
    }
}

#[derive(Debug, Default)]
pub struct Sample {
    seeds: u32,
    tests: Vec<Test>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    UnknownSpecies,
    TooFew { left: u32 },
    NeverTested,
    TooOld,
}

pub struct Bank {
    samples: HashMap<String, Sample>,
    least_rate: f64,
}

impl Bank {
    pub fn new(least_rate: f64) -> Self {
        Self { samples: HashMap::new(), least_rate }
    }

    pub fn store(&mut self, species: &str, seeds: u32) {
        self.samples.entry(species.to_owned()).or_default().seeds += seeds;
    }

    pub fn record(&mut self, species: &str, test: Test) -> Result<(), Refusal> {
        let sample = self.samples.get_mut(species).ok_or(Refusal::UnknownSpecies)?;
        if sample.seeds < test.sown {
            return Err(Refusal::TooFew { left: sample.seeds });
        }
        sample.seeds -= test.sown;
        sample.tests.push(test);
        Ok(())
    }

    pub fn hand_out(&mut self, species: &str, wanted: u32) -> Result<u32, Refusal> {
        let least = self.least_rate;
        let sample = self.samples.get_mut(species).ok_or(Refusal::UnknownSpecies)?;
        let newest = sample.tests.iter().max_by_key(|test| test.day).ok_or(Refusal::NeverTested)?;
        if newest.rate() < least {
            return Err(Refusal::TooOld);
        }
        match sample.seeds.checked_sub(wanted) {
            Some(rest) => {
                sample.seeds = rest;
                Ok(wanted)
            }
            None => Err(Refusal::TooFew { left: sample.seeds }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_hardly_sprout_stay_in_the_bank() {
        let mut bank = Bank::new(0.8);
        bank.store("poppy", 500);
        bank.record("poppy", Test { day: 3, sown: 50, sprouted: 20 }).unwrap();
        assert_eq!(bank.hand_out("poppy", 10), Err(Refusal::TooOld));
    }
}
