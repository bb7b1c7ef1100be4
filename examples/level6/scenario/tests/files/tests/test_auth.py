"""Passwords and sessions."""

import unittest

from webapp_framework.auth import check_password, hash_password, log_in, log_out, sign, signed_in, verify
from webapp_framework.core import Application, Response
from webapp_framework.routing import Router
from webapp_framework.testing import Client

KEY = b"a key for tests"


class PasswordTest(unittest.TestCase):
    def test_only_the_right_password_fits(self):
        stored = hash_password("secret")
        self.assertTrue(check_password("secret", stored))
        self.assertFalse(check_password("Secret", stored))
        self.assertFalse(check_password("secret", "no record"))
        self.assertNotEqual(stored, hash_password("secret"))


class SessionTest(unittest.TestCase):
    def test_a_changed_token_says_nothing(self):
        token = sign({"id": 1}, KEY)
        self.assertEqual(verify(token, KEY), {"id": 1})
        self.assertIsNone(verify(token, b"another key"))
        self.assertIsNone(verify("x" + token, KEY))

    def test_an_old_token_says_nothing(self):
        token = sign({"id": 1}, KEY, seconds=60, now=1000)
        self.assertEqual(verify(token, KEY, now=1059), {"id": 1})
        self.assertIsNone(verify(token, KEY, now=1060))

    def test_a_page_for_users_only(self):
        application = Application(Router())
        application.route("/login", "POST")(lambda request: log_in(Response.redirect("/"), request.form()["user"], KEY))
        application.route("/logout", "POST")(lambda request: log_out(Response.redirect("/")))
        application.route("/")(signed_in(KEY)(lambda request: f"hello {request.state['user']}"))
        client = Client(application)
        self.assertEqual(client.get("/").status, 401)
        client.submit("/login", user="ali")
        self.assertEqual(client.get("/").text, "hello ali")
        client.submit("/logout")
        self.assertEqual(client.get("/").status, 401)
