"""Passwords, and who somebody is from one request to the next."""

from webapp_framework.auth.passwords import check_password, hash_password
from webapp_framework.auth.sessions import log_in, log_out, sign, signed_in, user_of, verify

__all__ = ["check_password", "hash_password", "log_in", "log_out", "sign", "signed_in", "user_of", "verify"]
