"""What a name says about its value, and whether a value is a secret: judgement on words, made on many repositories.

A name tells what kind of value to expect (a password, a key), by its last word mostly. A value is no secret where it is a
placeholder, a word, a call, a path, a type, a date or a digest. Cost: some microseconds a value, which has 500 characters at most.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import re2

_PASSWORDS = {"password", "passwd", "passwort", "passphrase", "pass", "pwd", "secret", "secrets", "credential", "credentials",
              "requirepass", "psk", "masterauth", "userpassword"}  # fmt: skip
_KEYS = {"apikey", "token", "tokens", "authtoken", "secretkey", "accesskey", "privatekey", "jwt", "bearer", "auth", "authorization",
         "sas", "sig", "cookie", "sessionid", "seed", "mnemonic", "salt", "pepper", "dsn", "pat", "sharedkey", "accountkey", "pin",
         "otp", "totp", "webhook", "hmac", "fernet", "identitytoken", "sharedaccesssignature", "authkey",
         "connectionstring"}  # fmt: skip
#: Before "key": what makes a key a secret one.
_KEY_KINDS = {"api", "access", "secret", "private", "signing", "encryption", "master", "account", "storage", "shared", "app", "auth",
              "application", "license", "service", "server", "deploy", "deployment",
              "webhook", "hmac", "fernet", "session", "client", "crypt",
              "crypto", "encrypt", "decryption", "jwt", "token", "signature", "rest", "admin", "subscription", "function", "host",
              "preshared", "psk", "logged", "nonce", "aes", "cipher", "write", "read", "ingest", "integration", "root", "user",
              "project", "consumer", "bot", "maps", "instrumentation", "stripe", "sendgrid", "openai", "aws"}  # fmt: skip
#: After the noun: what makes it something about a secret, and no secret.
_ABOUT = {"url", "uri", "file", "filename", "path", "dir", "name", "id", "ids", "type", "kind", "length", "len", "min", "max", "count",
          "size", "limit", "field", "label", "header", "ttl", "expiry", "expires", "expiration", "expire", "timeout", "policy",
          "pattern", "regex", "prefix", "suffix", "env", "var", "ref", "param", "endpoint", "class", "module", "function",
          "provider", "store", "manager", "service", "index", "column", "table", "error", "message", "msg", "hint", "help",
          "placeholder", "algorithm", "alg", "algo", "format", "strength", "required", "enabled", "rotation", "hashers",
          "validators", "version", "scope", "scopes", "budget", "cost", "usage", "rate", "position", "digest", "checksum",
          "fingerprint", "arn", "location", "selector", "template", "schema", "spec", "test", "description", "title", "text",
          "method", "mode", "status", "state", "issuer", "audience", "domain", "region", "level", "source", "target"}  # fmt: skip
#: Anywhere in a name: keys that everybody may see, and things with "token" in their name that are no secrets.
_OPEN = {"public", "publishable", "primary", "foreign", "sort", "cache", "partition", "site", "sitekey", "max", "min", "num", "eos",
         "bos", "pad", "unk", "integrity", "checksum", "commit", "sha", "rev", "revision", "translation", "i18n"}  # fmt: skip
_TRAILING = {
    "prod", "production", "dev", "test", "staging", "live", "value", "val", "str", "string", "base64", "b64", "hex", "raw",
    "plain", "plaintext", "default", "old", "new", "current", "primary", "secondary", "main", "base", "data", "enc", "encoded",
}  # fmt: skip

#: Scraps of text that nobody types as a secret.
_PLACEHOLDER = re2.compile(
    r"(?i)example|placeholder|change.?(?:me|it|this)|\byour|dummy|\bfake|\bsample|redacted|todo\b|fixme|insert|replace|x{4,}|\*{3,}|<.*>|"
    r"\$\{|\$\(|\{\{|%\(|%s|\.\.\.|…|\bmock|\bfoo|\bbar\b|\btest|\bmy[-_]|#\{|\bnot[-_]a|\bsome[-_]|\bdemo|0123456789$|1234567890?$"
)
_WORDS_OF_SECRETS = re.compile(
    r"(?:secret|password|passwd|passphrase|pass|token|key|api|auth|admin|root|user|test|super|very|my|the|default|hidden|login|bearer|"
    r"access|none|null|undefined|true|false|required|optional|string|postgres|mysql|redis|[\s_.\-])*\d{0,4}",
    re.I,
)
REFERENCE = re.compile(
    r"^[$%@&*!#~]?[{(]|^\$[A-Za-z_]|^%[A-Za-z_]+%$|^(?:os|process|env|self|this|config|settings|secrets?|vars?|var|data|local|each|module|"
    r"args|request|req|ctx|options|props|params|values|aws|arn|vault|op|ref|file|http|https|ssm|sops|kms)[.:\[/]|^!\w|^/[\w.\-/]*$|^\.{0,2}/|^~/|::|^https?:|^enc\[",
    re.I,
)
_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]*(?:[.\[(:?!].*)?|[\w.]+[(\[].*")
TECHNICAL = re.compile(
    r"(?:sha|md|utf|base|rs|es|hs|ps|aes|oauth|http|ipv|x|v|py|ed|p|scrypt|bcrypt|argon|pbkdf|tls|ssl|s|ec|crc|gpt|blake|ansi|iso|int|float|uint)"
    r"[-_]?\d{1,5}(?:[a-z]{0,3}|[-_.].*)?",
    re.I,
)
#: Longer values are data.
_MOST_CHARACTERS = 500
_DIGEST = re.compile(r"(?:sha\d{1,3}|md5|blake\w*)[-:=]", re.I)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
#: Possessive: an end that is no date's is looked for once, and not once for every digit.
_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d++(?:\.\d++){1,3}+[-+.\w]*+$|^[\d.:, +\-/xe_%]+$", re.I)
_TOKEN = re.compile(r"[A-Za-z0-9+/=_\-]{20,}")
_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret(name: bytes, raw: bytes, *, quoted: bool, is_code: bool, is_comment: bool = False) -> bool:
    """Whether ``raw``, given to ``name``, is a secret.

    Args:
        quoted: whether the value stood in quotes.
        is_code: whether an unquoted value is an expression of a programming language.
        is_comment: whether it stands in a comment of one.
    """
    kind = kind_of_name(name)
    if kind is None:
        return False
    value = raw.decode(errors="replace").strip().rstrip("\\")
    if not quoted:
        value = value.rstrip(",;)")
    if (
        not 6 <= len(value) <= _MOST_CHARACTERS
        or is_placeholder(value)
        or REFERENCE.search(value)
        or _DIGEST.match(value)
    ):
        return False
    if " " in value:
        return _is_phrase(name, value)
    if kind == "auth":
        return is_basic(value) or (_TOKEN.fullmatch(value) is not None and looks_random(value))
    if not quoted and ("(" in value or "[" in value):
        return False
    if not quoted and is_code and is_comment:
        return kind == "password" and _may_stand_in_comment(value) and mixes(value)
    if not quoted and is_code:
        return _IDENTIFIER.fullmatch(value) is None and looks_random(value)
    if TECHNICAL.fullmatch(value) or _DATE.match(value):
        return False
    if kind == "password":
        return reads_like_password(value) or looks_random(value)
    return looks_random(value)


def _may_stand_in_comment(value: str) -> bool:
    """Whether an unquoted password has signs that no name has, or capitals, small letters and digits and nothing else."""
    signs = set(value)
    if signs & set("!@#$%^&*+?~"):
        return not signs & set("_.()[]:") and not any(map(str.isspace, signs))
    return (
        value.isascii()
        and value.isalnum()
        and all(any(map(of_kind, signs)) for of_kind in (str.isupper, str.islower, str.isdigit))
    )


def _is_phrase(name: bytes, value: str) -> bool:
    """Whether a value with spaces is a phrase of words to be kept secret, or sixteen letters in fours."""
    words = value.split(" ")
    last = words_of(name)[-1:]
    if last and last[0] in ("mnemonic", "seed", "phrase", "passphrase"):
        return len(words) >= 4 and all(word.isalpha() and word.islower() for word in words)
    return len(words) == 4 and all(len(word) == 4 and word.isalpha() and word.islower() for word in words)


def words_of(name: bytes) -> list[str]:
    """The words of a name in snake, kebab or camel case, small."""
    return [word.lower() for word in _NAME_PART.findall(name.decode(errors="replace"))]


@lru_cache(maxsize=4096)  # files say the same names again and again
def kind_of_name(name: bytes) -> str | None:
    """What kind of secret a name announces: a password, a key, credentials in base64 ("auth"), or none."""
    words = words_of(name)
    if not words or len(name) > 100 or _OPEN.intersection(words):
        return None
    while len(words) > 1 and (words[-1] in _TRAILING or words[-1].isdigit()):
        words.pop()
    last = words[-1]
    if last in _ABOUT:
        return None
    if last in ("auth", "authorization"):
        return "auth"
    if last in _PASSWORDS or last.endswith(("password", "passwd", "secret", "passphrase")):
        return "password"
    if (
        last in _KEYS
        or last.endswith(("apikey", "secretkey", "accesskey", "authtoken", "accesstoken"))
        or (last.endswith("token") and last != "token")
    ):
        return "key"
    if (
        last in ("key", "keys")
        and len(words) > 1
        and (words[-2] in _KEY_KINDS or words[0] in ("secret", "private"))
    ):
        return "key"
    if last in ("string", "phrase") and len(words) > 1:
        return "key"
    if last == "key" and len(words) > 1 and len(words[-2]) > 2:
        return "key"
    return None


def is_placeholder(value: str) -> bool:
    """Whether nobody would take a value for a secret: ``changeme``, ``your-token``, ``xxxx``, ``my_secret1``."""
    if _PLACEHOLDER.search(value):
        return True
    if _WORDS_OF_SECRETS.fullmatch(value):
        return True
    return len(set(value)) < 4


def may_be_secret(value: str) -> bool:
    """Whether a value, whatever its name, is neither a placeholder nor a word nor code."""
    return (
        not is_placeholder(value)
        and not set(value) & set("()[]{}<> ")
        and (reads_like_password(value) or looks_random(value))
    )


def mixes(value: str) -> bool:
    """Whether a value has letters and digits."""
    return any(map(str.isalpha, value)) and any(map(str.isdigit, value))


def reads_like_password(value: str) -> bool:
    """Letters and digits, or letters and signs that no identifier has, and no words joined by hyphens or dots."""
    if len(value) > 200:
        return False
    letters = sum(map(str.isalpha, value))
    digits = sum(map(str.isdigit, value))
    signs = sum(character in "!@#$%^&*?+~=|" for character in value)
    if not letters or not (digits or signs):
        return looks_random(value)
    parts = re.split(r"[-_./:]", value)
    is_words = len(parts) > 1 and all(
        part.isalpha() or part.isdigit() or not part or TECHNICAL.fullmatch(part) for part in parts
    )
    return not (is_words and not signs and not looks_random(value)) and not value.endswith(("()", ")", "("))


def looks_random(value: str) -> bool:
    """Whether the longest unbroken part of a value is no word, number, date or name."""
    if not value.isascii() or (_DATE.match(value) and not _UUID.fullmatch(value)):
        return False
    if _UUID.fullmatch(value):
        return True
    parts = re.split(r"[-_./:@,;|]", value)
    part = max(parts, key=len)
    if len(value) < 12:
        return False
    if len(part) < 10:
        return (
            len(parts) > 1
            and len(value) >= 16
            and sum(mixes(item) for item in parts) >= max(2, len(parts) - 1)
        )
    counts = Counter(part)
    entropy = -sum(count / len(part) * math.log2(count / len(part)) for count in counts.values())
    if entropy < 2.8:
        return False
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else "s" for c in part]
    changes = sum(a != b for a, b in pairwise(kinds))
    if mixes(part):
        if entropy < min(3.3, math.log2(len(part)) - 0.6):
            return False
        return changes >= 3 or len(part) >= 24
    words = _NAME_PART.findall(part)
    return len(part) >= 16 and sum(_is_no_word(word) for word in words) > len(words) / 2


def _is_no_word(word: str) -> bool:
    """Whether letters have too few vowels, or too many consonants in a row, to be said."""
    word = word.lower()
    vowels = sum(letter in "aeiouy" for letter in word)
    return (
        len(word) < 3 or vowels < 0.2 * len(word) or re.search(r"[bcdfghjklmnpqrstvwxz]{5}", word) is not None
    )


def is_basic(value: str) -> bool:
    """Whether a value is ``user:password`` in base64."""
    try:
        text = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return False
    user, colon, password = text.partition(":")
    return bool(colon and user and len(password) >= 3 and text.isprintable() and not is_placeholder(password))
