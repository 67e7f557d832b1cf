"""Values that are given to names like ``password`` or ``api_key``, in all the ways in which files do that.

In: lines of a file, as bytes, and whether unquoted words are values in it (as in ``.env``, YAML, INI, Markdown) or code (as in
Python). Out: what each line is suspected of; `source.secret_words` judges the names and the values. Every expression over whole
texts is re2's, so time is linear in the text, and what is looked at one by one is bounded. Cost: about 0.1 s for a MB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import re2

from mlx_gardener.source.secret_words import (
    REFERENCE,
    TECHNICAL,
    is_basic,
    is_placeholder,
    is_secret,
    kind_of_name,
    looks_random,
    mixes,
    reads_like_password,
    words_of,
)

_NOUN = (
    rb"pass|pwd|secret|token|key|cred|auth|jwt|bearer|psk|sas|sig|cookie|session|seed|mnemonic|salt|pepper|fernet|dsn|webhook|hmac|otp|\bpat\b|"
    rb"pin\b|connection"
)
_CANDIDATE = re2.compile(
    rb"(?i)(?:"
    + _NOUN
    + rb")[\w.\-]*[\"'\])\\]*[ \t]*(?:[=:,(>]|[ \t])[ \t=>:\"'`({\[\\]*(?:[bfru]+[\"'])?[^\s\"'`({\[=>:\\<][^\s\"'`<]{3}"
)
_ENV_VALUE = rb"\"([^\"]+)|'([^']+)|`([^`]+)|([^\s\"'`,;&<>(){}\[\]][^\s\"'`,;&<>{}]*)"
_ASSIGNED = re2.compile(
    rb"([A-Za-z_][\w.\-]*)\\?[\"'\])]*[ \t]*(?::[ \t]+[&\w<>?.' \t]+[ \t]=|:=|=>|\?=|\+=|={1,3}|:)[ \t]*([@bBfFrRuU]*\\?[\"'`])?"
)
_UNQUOTED = re.compile(rb"[^\s\"'`,;&<>(){}\[\]][^\s\"'`,;&<>{}]{0,500}")
_END_OF_QUOTED = {quote: re.compile(b"[^%b]{0,500}" % quote) for quote in (b'"', b"'", b"`")}
_CALL = re2.compile(rb"([A-Za-z_]\w*)\([ \t]*[bfru]*[\"']([^\"']{4,})[\"']")
_ARGUMENT = re2.compile(
    rb"(?:\bauth[ \t]*=[ \t]*\([ \t]*[\"'][^\"']+[\"']|\bjwt\.\w+\([^,]+,|"
    rb"#[ \t]*define[ \t]+\w*(?:PASS|PWD|SECRET|TOKEN|KEY)\w*),?[ \t]*[\"']([^\"']{4,})[\"']"
)
_PAIR = re2.compile(rb"[\"']([\w.\-]{3,})[\"'][ \t]*,[ \t]*[bfru]*[\"']([^\"']{4,})[\"']")
_ELEMENT = re2.compile(
    rb"<([\w:.\-]+)(?:\s[^<>]*)?>(?:<!\[CDATA\[)?\s*([^<>\s]{4,}?)\s*(?:\]\]>)?</|<(?:key|string)>([^<>]{4,})</"
)
_ATTRIBUTES = re2.compile(
    rb"(?i)\b(?:key|name|id)=[\"']([\w.:\-]{3,})[\"'][^<>]*?(?:value|content)?[=>]\s*[\"']?([^\"'<>\s]{4,})"
)
#: A name on one line and its value on the next (Kubernetes, CloudFormation, plists, Terraform).
_ACROSS = re2.compile(
    rb"(?i)(?:(?:^|[\s{,\-\"'])(?:name|key|parameterkey)[\"']?[ \t]*[:=][ \t]*[\"']?"
    rb"([\w.\-]{3,})[\"']?,?[ \t]*\n?[ \t]*[\"']?(?:value|default|parametervalue)"
    rb"[\"']?[ \t]*[:=]|variable[ \t]+\"([\w\-]{3,})\"[ \t]*\{[^{}]*?default[ \t]*=|"
    rb"<key>([\w.\-]{3,})</key>\s*<string>|([\w.\-]{3,}):[ \t]*[|>][+\-]?[ \t]*\n)[ \t]*(?:"
    + _ENV_VALUE
    + rb")",
)
_URL = re2.compile(rb"(?i)\b[a-z][a-z0-9+.\-]*://[^\s/@:'\"<>]*:([^\s/@'\"<>]{3,})@[\w.\[$%{\-]")
#: Within connection strings and queries.
_INNER = re2.compile(rb"[?&;\"'`]([A-Za-z][\w .\-]*)=([^&;,\"'`\s<>{}()$]{6,})")
_URL_TOKEN = re2.compile(rb"\bhttps?://([\w\-]{20,})@[\w.\[$%{\-]")
_HEADER = re2.compile(rb"(?i)\b(bearer|basic|digest|apikey|token)[ \t]+([A-Za-z0-9+/=._~\-]{12,})")
_USER = re2.compile(
    rb"(?:^|\s)(?:-u|--user|--proxy-user|--basic-auth)[ =][\"']?([^\s:\"'$<{]+):([^\s\"'$<{]{4,})"
)
_MYSQL = re2.compile(rb"\b(?:mysql\w*|mariadb\w*|sshpass|docker login)\b.*?\s-p[ ]?[\"']?([^\s\"'$<{\-]{5,})")
_PGPASS = re2.compile(rb"^[\w.*\-]+:(?:\d{2,5}|\*):[\w.*\-]+:[\w.*\-]+:(\S{4,})$")
_CRYPT = re2.compile(
    rb"\$(?:apr1|1|5|6|y|2[abxy]|argon2id?|scrypt|pbkdf2[\w-]*)\$[\w./$=,+\-]{22,}|\{S?SHA(?:256|512)?\}[A-Za-z0-9+/]{24,}={0,2}"
)
_PREFIXED = re2.compile(
    rb"\b(?:"
    rb"A[KS]IA[A-Z2-7]{16}\b|AIza[\w\-]{35}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,}|glpat-[\w\-]{20}|"
    rb"xox[abeoprs]-[\w\-]{20,}|xapp-\d-[\w\-]{20,}|[srw]k_(?:live|test)_[A-Za-z0-9]{20,}|"
    rb"sk-(?:proj-|ant-|or-)?[\w\-]{32,}|SG\.[\w\-]{20,}\.[\w\-]{20,}|hf_[A-Za-z]{30,}|npm_[A-Za-z0-9]{36}|"
    rb"pypi-[\w\-]{40,}|dop_v1_[a-f0-9]{64}|shp(?:at|ss|ca|pa)_[a-fA-F0-9]{32}|sq0[a-z]{3}-[\w\-]{22,}|"
    rb"dapi[a-f0-9]{32}|hv[sb]\.[\w\-]{24,}|lin_api_[A-Za-z0-9]{36,}|(?:ntn|secret)_[A-Za-z0-9]{40,}|"
    rb"dp\.(?:pt|st|ct)\.[\w.\-]{40,}|AGE-SECRET-KEY-1[A-Z0-9]{50,}|EAAC[A-Za-z0-9]{40,}|ya29\.[\w\-]{30,}|"
    rb"1//0[\w\-]{30,}|NRAK-[A-Z0-9]{27}|key-[a-f0-9]{32}|[a-f0-9]{32}-us\d{1,2}\b|S[CGK][a-f0-9]{32}\b|"
    rb"gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{36,}|pat[A-Za-z0-9]{14}\.[a-f0-9]{64}|GOCSPX-[\w\-]{28}|"
    rb"glc_[A-Za-z0-9+/=]{32,}|sntrys_[A-Za-z0-9+/=_]{40,}|rubygems_[a-f0-9]{48}|figd_[\w\-]{40,}|"
    rb"sbp_[a-f0-9]{40}|AccountKey=[A-Za-z0-9+/]{40,}|eyJ[\w\-]{10,}\.eyJ[\w\-]{10,}\.[\w\-]{10,}|"
    rb"\d{8,10}:AA[\w\-]{32,}|[MNO][A-Za-z\d_\-]{23,25}\.[\w\-]{6}\.[\w\-]{27,}|"
    rb"hooks\.slack\.com/services/T\w{7,}/B\w{7,}/\w{20,}|AC[a-f0-9]{32}[\"'][ \t]*,[ \t]*[\"'][a-f0-9]{32}|"
    rb"discord(?:app)?\.com/api/webhooks/\d{15,}/[\w\-]{40,}|sig=[A-Za-z0-9%]{40,}|"
    rb"RWRTY0Iy[A-Za-z0-9+/=]{60,}"
    rb")"
)  # fmt: skip
_KUBERNETES_SECRET = re2.compile(rb"(?m)^\s*\"?kind\"?:\s*\"?Secret\b\"?,?\s*$")
_KUBERNETES_DATA = re2.compile(rb"^\s*\"?(?:data|stringData)\"?:\s*\{?\s*$")
_JWK = re2.compile(rb"\"(?:d|k)\"[ \t]*:[ \t]*\"[\w\-]{40,}\"")

_DIGIT = re.compile(rb"\d")

#: A file that takes longer than this, and what is asked of a text takes anyway, is made of names of secrets.
MOST_MICROSECONDS = 500_000
#: What it takes to look at a line that speaks of a secret, a value given to one, another name, and any other match.
_LINE, _VALUE, _NAME, _MATCH = 12, 12, 4, 10
#: Names of secrets in one line whose values are looked at; hostile lines have hundreds.
_MOST_IN_LINE = 40
_GETTERS = {
    "get", "find", "is", "has", "check", "validate", "verify", "read", "fetch", "load", "parse", "require",
    "lookup", "test", "assert", "delete", "remove", "generate", "create", "expect", "match", "hash", "print", "log",
    "raise", "error", "format", "label", "t", "translate",
}  # fmt: skip


class TooManySecretsError(ValueError):
    """A file holds so many secrets, or names of some, that it is not looked at to its end; what was found does not matter."""


class _Patience:
    """What may still be looked at in a file, in microseconds or so."""

    def __init__(self) -> None:
        self._left = MOST_MICROSECONDS

    def take(self, microseconds: int) -> None:
        """Raises TooManySecretsError where nothing is left."""
        self._left -= microseconds
        if self._left < 0:
            raise TooManySecretsError("more names of secrets than are looked at")

    def matches(
        self,
        expression: re2.Pattern[bytes],
        text: bytes,
        *,
        microseconds: int = _MATCH,
        one_a_line: bool = False,
    ) -> Iterator[re2.Match[bytes]]:
        """As ``finditer``; after a match with ``one_a_line`` in the next line."""
        at = 0
        while (match := expression.search(text, at)) is not None:
            self.take(microseconds)
            yield match
            at = text.find(b"\n", match.end()) if one_a_line else match.end()
            if at < 0:
                return


def credential_lines(text: bytes, *, is_code: bool) -> Iterator[tuple[int, str]]:
    """(offset, kind) of values that look like credentials, where ``text`` has lines of bounded length.

    Args:
        is_code: whether an unquoted word is an expression of a programming language, and no value.

    Raises:
        TooManySecretsError: there is more to look at than takes `MOST_MICROSECONDS`.
    """
    patience = _Patience()
    for match in patience.matches(_PREFIXED, text):
        if not is_placeholder(match[0].decode(errors="replace")):
            yield match.start(), "AWS access key" if match[0][2:4] == b"IA" else "access token"
    for match in patience.matches(_URL, text):
        value = match[1].decode(errors="replace")
        if not is_placeholder(value) and not value.startswith(("$", "{", "<", "%", ":")):
            yield match.start(), "password in a URL"
    for match in patience.matches(_URL_TOKEN, text):
        if looks_random(match[1].decode(errors="replace")):
            yield match.start(), "token in a URL"
    for match in patience.matches(_CRYPT, text):
        yield match.start(), "password hash"
    if b'"kty"' in text:
        for match in patience.matches(_JWK, text):
            yield match.start(), "private key"
    for match in patience.matches(_ACROSS, text):
        name = next(filter(None, match.groups()[:4]), b"")
        number = next((n for n in (5, 6, 7, 8) if match[n]), 0)
        if number and is_secret(name, match[number], quoted=number != 8, is_code=is_code):
            yield match.start(number), "assigned secret"
    for match in patience.matches(_CANDIDATE, text, microseconds=_LINE, one_a_line=True):
        start = text.rfind(b"\n", 0, match.start()) + 1
        end = text.find(b"\n", match.end())
        line = text[start : len(text) if end < 0 else end]
        kind = _kind_of(line, is_code, patience)
        if kind is not None:
            yield start, kind
    for expression in (_USER, _MYSQL):
        for match in patience.matches(expression, text):
            value = match.groups()[-1].decode(errors="replace")
            if not is_placeholder(value) and reads_like_password(value):
                yield match.start(), "password in a command"
    if not is_code:
        yield from _pgpass(text)
        if b"kind" in text:
            yield from _kubernetes(text)


def _pgpass(text: bytes) -> Iterator[tuple[int, str]]:
    offset = 0
    for line in text.split(b"\n"):
        if (
            line.count(b":") == 4
            and (match := _PGPASS.search(line))
            and not is_placeholder(match[1].decode(errors="replace"))
        ):
            yield offset, "password"
        offset += len(line) + 1


def _kubernetes(text: bytes) -> Iterator[tuple[int, str]]:
    """Every value below ``data`` and ``stringData`` of a Kubernetes secret, whatever its name."""
    is_secret = any(_KUBERNETES_SECRET.search(part) for part in text.split(b"\n---"))
    offset, indent = 0, -1
    for line in text.split(b"\n") if is_secret else ():
        depth = len(line) - len(line.lstrip())
        if b"ata" in line and _KUBERNETES_DATA.search(line):
            indent = depth
        elif indent >= 0 and line.strip():
            if depth <= indent:
                indent = -1
            else:
                value = line.partition(b":")[2].strip()
                if len(value) >= 4 and not REFERENCE.search(value.strip(b" \"'").decode(errors="replace")):
                    yield offset, "Kubernetes secret"
        offset += len(line) + 1


def _kind_of(line: bytes, is_code: bool, patience: _Patience) -> str | None:
    """What a line is suspected of. Signs that an expression cannot do without are looked for first: that is ten times cheaper."""
    return (
        _kind_of_assigned(line, is_code, patience)
        or _kind_of_quoted(line, is_code, patience)
        or _kind_of_header(line, patience)
        or _kind_of_element(line, is_code, patience)
        or _spaced(line, is_code, patience)
    )


def _kind_of_assigned(line: bytes, is_code: bool, patience: _Patience) -> str | None:
    if b"=" not in line and b":" not in line:
        return None
    looked, is_comment = 0, line.lstrip().startswith((b"#", b"//", b"*", b"/*", b"--"))
    for match in patience.matches(_ASSIGNED, line, microseconds=_NAME):
        if kind_of_name(match[1]) is None:
            continue
        patience.take(_VALUE)
        looked += 1
        if looked > _MOST_IN_LINE:
            break
        expression = _END_OF_QUOTED[match[2][-1:]] if match[2] else _UNQUOTED
        value = expression.match(line, match.end())
        if value and is_secret(
            match[1], value[0], quoted=bool(match[2]), is_code=is_code, is_comment=is_comment
        ):
            return "assigned secret"
    if b"=" in line and any(sign in line for sign in (b"?", b"&", b";", b'"', b"'", b"`")):
        for match in patience.matches(_INNER, line):
            if is_secret(match[1], match[2], quoted=True, is_code=is_code):
                return "assigned secret"
    return None


def _kind_of_header(line: bytes, patience: _Patience) -> str | None:
    small = line.lower()
    if any(word in small for word in (b"bearer", b"basic", b"digest", b"apikey", b"token")):
        for match in patience.matches(_HEADER, line):
            value = match[2].decode(errors="replace")
            if not is_placeholder(value) and (
                is_basic(value) if match[1].lower() == b"basic" else looks_random(value)
            ):
                return "authorization header"
    return None


def _kind_of_quoted(line: bytes, is_code: bool, patience: _Patience) -> str | None:
    if b'"' not in line and b"'" not in line:
        return None
    if b"(" in line:
        for match in patience.matches(_CALL, line):
            words = words_of(match[1])
            if (
                words
                and words[0] not in _GETTERS
                and is_secret(match[1], match[2], quoted=True, is_code=is_code)
            ):
                return "assigned secret"
    if b"auth" in line or b"jwt." in line or b"define" in line:
        for match in patience.matches(_ARGUMENT, line):
            value = match[1].decode(errors="replace")
            if not is_placeholder(value) and " " not in value and reads_like_password(value):
                return "assigned secret"
    if b"," in line:
        for match in patience.matches(_PAIR, line):
            if is_secret(match[1], match[2], quoted=True, is_code=is_code):
                return "assigned secret"
    return None


def _kind_of_element(line: bytes, is_code: bool, patience: _Patience) -> str | None:
    if b"<" not in line:
        return None
    for match in patience.matches(_ELEMENT, line):
        if match[1] and is_secret(match[1], match[2], quoted=True, is_code=is_code):
            return "assigned secret"
    for match in patience.matches(_ATTRIBUTES, line):
        if is_secret(match[1], match[2], quoted=True, is_code=is_code):
            return "assigned secret"
    return None


def _spaced(line: bytes, is_code: bool, patience: _Patience) -> str | None:
    """``password hunter2`` in netrc and the like, ``--token abc`` in commands."""
    words = line.split()
    for name, value in pairwise(words):
        is_option = name.startswith(b"--")
        if is_code and not is_option:
            continue
        if len(value) < 6 or (value.isascii() and not _DIGIT.search(value)):
            continue  # what is asked last of it below, and costs least
        patience.take(_NAME)
        kind = kind_of_name(name.strip(b"-"))
        if kind is None or not name.strip(b"-").replace(b"_", b"").replace(b"-", b"").isalnum():
            continue
        patience.take(_VALUE)
        text = value.strip(b"\"',;").decode(errors="replace")
        if (
            len(text) >= 6
            and not is_placeholder(text)
            and not REFERENCE.search(text)
            and mixes(text)
            and not TECHNICAL.fullmatch(text)
            and (is_option or (re.fullmatch(r"\S+", text) and not text.endswith((".", ")", ":"))))
            and (reads_like_password(text) if kind == "password" else looks_random(text))
        ):
            return "assigned secret"
    return None
