"""Fifty kinds of secrets and sixty lines that only look a bit like some, as they stand in files.

Values are drawn anew from a seed and put together here, so that no scanner of other people's repositories finds one in ours.
In a sample a line that begins with ``!`` holds the secret (the sign is taken off).
"""

# ruff: noqa: E501  a table, one kind a line

from __future__ import annotations

import base64
import random
import string
from dataclasses import dataclass

_LETTERS_DIGITS = string.ascii_letters + string.digits
_BASE64 = _LETTERS_DIGITS + "+/"
PRIVATE = "PRIVATE" + " KEY"


@dataclass(frozen=True)
class Sample:
    """A kind of secret: the file it stands in, its lines, and which of them (from 0) must go."""

    kind: str
    path: str
    lines: list[str]
    secret: set[int]


class Maker:
    """Draws values that look like the real ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def text(self, length: int, alphabet: str = _LETTERS_DIGITS) -> str:
        while True:
            made = "".join(self._random.choices(alphabet, k=length))
            if length < 8 or not any(map(str.isdigit, alphabet)) or any(map(str.isdigit, made[1:-1])):
                return made

    def hex(self, length: int) -> str:
        return self.text(length, "0123456789abcdef")

    def base64(self, length: int) -> str:
        return self.text(length, _BASE64)

    def uuid(self) -> str:
        return "-".join(self.hex(size) for size in (8, 4, 4, 4, 12))

    def password(self) -> str:
        """As people make them: a few letters, digits and signs."""
        made = (
            self.text(3, string.ascii_uppercase)
            + self.text(5, string.ascii_lowercase)
            + self.text(3, string.digits)
        )
        return "".join(self._random.sample(made, len(made)))

    def signs(self) -> str:
        return f"{self.text(4, string.ascii_letters)}!{self.text(3, string.digits)}#{self.text(4, string.ascii_letters)}"

    def key_body(self, lines: int, width: int = 64) -> list[str]:
        """The base64 lines of a private key, the last one short."""
        return [
            "MIIEpAIBAAKCAQEA" + self.base64(width - 16),
            *(self.base64(width) for _ in range(lines - 2)),
            self.base64(22) + "==",
        ]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def pem(make: Maker, kind: str = "RSA", lines: int = 25) -> list[str]:
    """A private key in PEM, head and foot included."""
    head = f"{kind} {PRIVATE}" if kind else PRIVATE
    return [f"-----BEGIN {head}-----", *make.key_body(lines), f"-----END {head}-----"]


def secret_samples(seed: int) -> list[Sample]:
    """The fifty kinds."""
    m = Maker(seed)
    marked = lambda lines: ["!" + line for line in lines]  # noqa: E731
    table: list[tuple[str, str, list[str]]] = [
        (".env password", ".env", ["APP_ENV=production", f"!DB_PASSWORD={m.password()}", "PORT=8080"]),
        (".env api key", ".env", ["DEBUG=false", f"!PAYMENT_API_KEY={m.text(32)}", "WORKERS=4"]),
        ("YAML password", "config.yaml", ["database:", "  host: db.internal", f"!  password: {m.signs()}", "  port: 5432"]),
        ("YAML token in quotes", "deploy.yml", ["slack:", f'!  token: "{m.text(40)}"', "  channel: builds"]),
        ("INI password", "app.ini", ["[smtp]", "host = mail.internal", f"!password = {m.password()}"]),
        ("Java properties", "application.properties", ["server.port=9000", f"!spring.datasource.password={m.password()}"]),
        ("shell export", "run.sh", ["#!/bin/bash", f"!export AUTH_TOKEN={m.text(36)}", "exec ./server"]),
        ("Authorization: Bearer", "requests.http", ["GET /v1/items HTTP/1.1", f"!Authorization: Bearer {m.text(44)}"]),
        ("Authorization: Basic", "call.py", ["import http", f"!headers = {{'Authorization': 'Basic {encoded('deploy:' + m.password())}'}}"]),
        ("X-Api-Key header", "fetch.sh", [f"!curl -H 'X-Api-Key: {m.text(32)}' https://api.internal/items"]),
        ("netrc", ".netrc", ["machine git.internal", "  login deploy", f"!  password {m.password()}"]),
        ("netrc on one line", "_netrc", [f"!machine git.internal login deploy password {m.password()}"]),
        ("docker auth", "config.json", ["{", ' "auths": {"registry.internal": {', f'!  "auth": "{encoded("ci:" + m.password())}"', " }}", "}"]),
        ("Kubernetes secret", "secret.yaml", ["apiVersion: v1", "kind: Secret", "metadata:", "  name: db", "data:",
                                               f"!  username: {encoded('service' + m.text(3))}", f"!  pass: {encoded(m.password())}"]),
        ("Kubernetes stringData", "tls.yaml", ["kind: Secret", "stringData:", f"!  connection: {m.text(9)}{m.signs()}", "type: Opaque"]),
        ("Kubernetes variable", "pod.yaml", ["env:", "- name: DB_PASSWORD", f"!  value: {m.password()}", "- name: PORT", '  value: "80"']),
        ("JavaScript template", "client.js", ["const host = 'db';", f"!const dsn = `postgres://admin:{m.password()}@${{host}}/app`;"]),
        ("f-string with a key", "client.py", ["import web", f"!url = f'https://api.internal/{{path}}?api_key={m.text(32)}'"]),
        ("XML element", "settings.xml", ["<server>", "  <id>nexus</id>", f"!  <password>{m.password()}</password>", "</server>"]),
        ("XML attribute", "web.config", ["<appSettings>", f'!  <add key="StorageSecret" value="{m.text(28)}" />', "</appSettings>"]),
        ("connection string", "appsettings.json", ["{", f'!  "Default": "Server=db;User Id=app;Password={m.signs()};"', "}"]),
        ("JDBC URL", "Db.java", ["class Db {", f'!  String url = "jdbc:mysql://db/app?user=app&password={m.password()}";', "}"]),
        ("URL with a password", "celery.py", ["from celery import Celery", f"!broker = 'amqp://worker:{m.password()}@queue.internal:5672//'"]),
        ("git credentials", ".git-credentials", [f"!https://bot:{m.text(30)}@git.internal"]),
        ("RSA key in PEM", "server.key", marked(pem(m))),
        ("key in YAML", "values.yaml", ["tls:", "  key: |", *("!    " + line for line in pem(m, ""))]),
        ("OpenSSH key", "id_deploy", marked([f"-----BEGIN OPENSSH {PRIVATE}-----", "b3BlbnNzaC1rZXktdjEAAAAA" + m.base64(46),
                                              *(m.base64(70) for _ in range(9)), f"-----END OPENSSH {PRIVATE}-----"])),
        ("PGP key", "signing.asc", marked([f"-----BEGIN PGP {PRIVATE} BLOCK-----", "", *(m.base64(64) for _ in range(12)), "=" + m.base64(4),
                                            f"-----END PGP {PRIVATE} BLOCK-----"])),
        ("key without its head", "tail.pem", marked(pem(m)[1:])),
        ("PuTTY key", "login.ppk", marked(["PuTTY-User-Key-File-2: ssh-rsa", "Encryption: none", "Comment: laptop", "Private-Lines: 4",
                                           *(m.base64(64) for _ in range(4)), f"Private-MAC: {m.hex(40)}"])),
        ("service account", "account.json", ["{", ' "type": "service_account",',
                                             f'! "private_key": "-----BEGIN {PRIVATE}-----\\n{m.base64(64)}\\n-----END {PRIVATE}-----\\n",', "}"]),
        ("AWS access key", "aws.tf", ['provider "aws" {', f'!  access_key = "AKIA{m.text(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")}"', "}"]),
        ("AWS secret key", "credentials", ["[default]", f"!aws_secret_access_key = {m.base64(40)}"]),
        ("GitHub token", "ci.py", [f"!client = Github('ghp_{m.text(36)}')"]),
        ("Slack webhook", "notify.rb", [f"!HOOK = 'https://hooks.slack.com/services/T{m.text(8, string.ascii_uppercase + string.digits)}/B"
                                        f"{m.text(8, string.ascii_uppercase + string.digits)}/{m.text(24)}'"]),
        ("Stripe key", "pay.go", ["package pay", f'!var stripe = New("sk_live_{m.text(24)}")']),
        ("Google API key", "map.html", [f'!<script src="https://maps.googleapis.com/maps/api/js?key=AIza{m.text(35)}"></script>']),
        ("JSON web token", "test_login.ts", [f'!const jwt = "eyJ{m.text(33)}.eyJ{m.text(60)}.{m.text(43)}";']),
        ("npmrc", ".npmrc", ["registry=https://npm.internal/", f"!//npm.internal/:_authToken={m.uuid()}"]),
        ("pypirc", ".pypirc", ["[pypi]", "username = __token__", f"!password = pypi-AgEIcHlwaS5vcmc{m.text(80)}"]),
        ("PHP define", "wp-config.php", ["<?php", f"!define('DB_PASSWORD', '{m.signs()}');", f"!define( 'AUTH_KEY', '{m.text(40)}' );"]),
        ("Terraform default", "variables.tf", ['variable "db_password" {', "  type = string", f'!  default = "{m.password()}"', "}"]),
        ("Rails secret", "secrets.yml", ["production:", f"!  secret_key_base: {m.hex(128)}"]),
        ("Django key", "settings.py", ["DEBUG = False", f"!SECRET_KEY = 'django-insecure-{m.text(24)}!{m.text(25)}'"]),
        ("Azure storage", "upload.cs", [f'!var c = "DefaultEndpointsProtocol=https;AccountName=app;AccountKey={m.base64(86)}==";']),
        ("curl user", "backup.sh", [f"!curl -u deploy:{m.password()} https://files.internal/dump"]),
        ("command option", "Makefile", ["deploy:", f"!\tdeployer --password {m.password()} --host a"]),
        ("pgpass", ".pgpass", [f"!db.internal:5432:app:service:{m.password()}"]),
        ("htpasswd", ".htpasswd", [f"!admin:$apr1${m.text(8)}${m.text(22)}"]),
        ("setter call", "Client.kt", ["val client = Client()", f'!client.setApiToken("{m.text(32)}")']),
    ]  # fmt: skip
    samples = []
    for kind, path, lines in table:
        secret = {at for at, line in enumerate(lines) if line.startswith("!")}
        samples.append(
            Sample(
                kind,
                path,
                [line.removeprefix("!") if at in secret else line for at, line in enumerate(lines)],
                secret,
            )
        )
    return samples


def innocent_lines(seed: int) -> list[tuple[str, str]]:
    """Sixty lines that are no secrets, with the name of a file they stand in."""
    m = Maker(seed)
    return [
        ("a.py", "password = get_password(user)"),
        ("a.py", "password = os.environ['DB_PASSWORD']"),
        ("a.py", "def login(user: str, password: str) -> Token:"),
        ("a.py", "token = tokens[position + 1]"),
        ("a.py", "secret = secrets.token_urlsafe(32)"),
        ("a.py", "api_key = config.get('api_key') or os.getenv('API_KEY_V2')"),
        ("a.py", "PASSWORD_MIN_LENGTH = 12"),
        ("a.py", "if password != confirm_password2:"),
        ("a.py", "tokenizer = AutoTokenizer.from_pretrained('gpt2-medium-355m')"),
        ("a.py", "eos_token_id = tokenizer.eos_token_id or 50256"),
        ("a.py", "PASSWORD_HASHERS = ['django.contrib.auth.hashers.Argon2PasswordHasher']"),
        ("a.py", "cache_key = f'user:{user.id}:settings:v2'"),
        ("a.py", "raise ValueError('the password must have 8 characters and 1 digit')"),
        ("a.py", "key = lambda pair: (pair[1], pair[0])"),
        ("a.py", f"digest = '{m.hex(64)}'"),
        ("a.py", f"COMMIT = '{m.hex(40)}'"),
        ("a.py", "parser.add_argument('--api-key', help='key of the service, see SERVICE_API_KEY')"),
        ("a.py", "self.token_type = 'Bearer'"),
        ("a.py", "secret_key = settings.SECRET_KEY"),
        ("a.js", "const token = await getToken(user.id);"),
        ("a.js", "<input type=\"password\" name=\"password1\" autocomplete=\"current-password\">"),
        ("a.js", "const password = process.env.DB_PASSWORD ?? '';"),
        ("a.js", "import { TokenService2 } from './services/token-service2';"),
        ("a.js", "headers.Authorization = `Bearer ${accessToken}`;"),
        ("a.ts", "interface Login { password: string; token?: RefreshToken2 }"),
        ("a.ts", "export const AUTH_TOKEN_KEY = 'auth_token';"),
        ("a.go", "if len(password) < minPasswordLength8 {"),
        ("a.go", "token, err := jwt.ParseWithClaims(raw, &Claims{}, keyFunc)"),
        ("A.java", "private static final String PASSWORD_FIELD = \"j_password\";"),
        ("A.java", "user.setPassword(passwordEncoder.encode(request.getPassword()));"),
        ("a.rb", "validates :password, length: { minimum: 12 }"),
        ("a.php", "$password = password_hash($_POST['password'], PASSWORD_BCRYPT);"),
        ("a.cs", "public string ApiKey { get; set; } = string.Empty;"),
        ("a.rs", "let token: Option<String> = headers.get(AUTHORIZATION);"),
        ("a.c", "static const char *token = strtok(buffer, \" \");"),
        ("a.sh", "export API_TOKEN=\"$(vault read -field=token secret/app)\""),
        ("a.sh", "PASSWORD=${DB_PASSWORD:?must be set}"),
        (".env.example", "API_KEY=your-api-key-here"),
        (".env.example", "DB_PASSWORD=changeme"),
        (".env.example", "SECRET_KEY="),
        ("a.yaml", "password: ${{ secrets.DEPLOY_PASSWORD }}"),
        ("a.yaml", "token: {{ .Values.token }}"),
        ("a.yaml", "secretName: app-tls-2024"),
        ("a.yaml", "secretKeyRef: { name: db-credentials, key: password }"),
        ("a.yaml", "max_tokens: 4096"),
        ("a.yaml", "token_url: https://login.internal/oauth2/token"),
        ("a.yaml", f"image: registry.internal/app@sha256:{m.hex(64)}"),
        ("a.yaml", "key: restore-cache-v2-linux-x86_64"),
        ("a.toml", "private_key_path = \"/etc/ssl/private/server1.key\""),
        ("a.ini", "password_file = /run/secrets/db_password1"),
        ("a.json", f'"integrity": "sha512-{m.base64(86)}==",'),
        ("a.json", f'"id": "{m.uuid()}",'),
        ("a.tf", "password = var.db_password"),
        ("a.tf", "secret_arn = aws_secretsmanager_secret.db.arn"),
        ("a.xml", "<password>${env.DEPLOY_PASSWORD}</password>"),
        ("a.md", "Set the token with `--token TOKEN` or the variable API_TOKEN_V2."),
        ("a.md", "Passwords are hashed with sha256 and a salt; see docs/auth2.md."),
        ("a.pub", f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{m.base64(43)} me@laptop"),
        ("a.css", f"background: url(data:image/png;base64,{m.base64(120)});"),
        ("a.sql", "ALTER TABLE users ADD COLUMN password_digest varchar(255);"),
    ]  # fmt: skip
