"""Passwords, kept as salted hashes."""

from __future__ import annotations

import hashlib
import hmac
import os

ROUNDS = 20_000
"""Enough for a demonstration; the record keeps its own number, so it can be raised at any time."""


def hash_password(password: str, salt: bytes = b"", rounds: int = ROUNDS) -> str:
    """Returns what is kept in a password's place."""
    salt = salt or os.urandom(16)
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    return f"{rounds}${salt.hex()}${digest.hex()}"


def check_password(password: str, stored: str) -> bool:
    """Tells whether a password is the one that was kept; what is no record fits no password."""
    try:
        rounds, salt, _ = stored.split("$")
        again = hash_password(password, bytes.fromhex(salt), int(rounds))
    except ValueError:
        return False
    return hmac.compare_digest(again, stored)
