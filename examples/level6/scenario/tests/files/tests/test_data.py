"""Database, validation and utilities."""

import unittest

from webapp_framework.core import Application
from webapp_framework.database import Database, Model, name, register
from webapp_framework.routing import Router
from webapp_framework.testing import Client
from webapp_framework.utils import Cache, merge, pick, plural, shorten, slug
from webapp_framework.validation import Invalid, at_most, clean, email, integer, required, unique, validate


class User(Model):
    """A table for the tests."""

    table = "users"
    columns = ("mail",)


class DatabaseTest(unittest.TestCase):
    def setUp(self):
        self.database = Database()
        self.addCleanup(self.database.close)
        User.create_table(self.database)

    def test_a_row_is_added_found_and_changed(self):
        row = User.add(self.database, mail="a@b.org")
        self.assertEqual(User.find(self.database, id=row["id"]), [{"id": 1, "mail": "a@b.org"}])
        self.assertEqual(User.change(self.database, 1, mail="c@d.org")["mail"], "c@d.org")

    def test_values_are_bound(self):
        User.add(self.database, mail="'; DROP TABLE users; --")
        self.assertEqual(User.find(self.database, mail="' OR '1'='1"), [])
        self.assertEqual(len(User.find(self.database)), 1)

    def test_names_are_checked(self):
        with self.assertRaises(ValueError):
            name('users"; --')

    def test_a_failed_transaction_leaves_nothing(self):
        with self.assertRaises(KeyError), self.database.transaction():
            User.add(self.database, mail="a")
            raise KeyError
        self.assertEqual(User.find(self.database), [])

    def test_a_table_becomes_routes(self):
        router = Router()
        register(router, User, self.database)
        User.add(self.database, mail="a@b.org")
        client = Client(Application(router))
        self.assertEqual(client.get("/users").json(), [{"id": 1, "mail": "a@b.org"}])
        self.assertEqual(client.get("/users/2").status, 404)

    def test_what_is_taken_is_refused(self):
        User.add(self.database, mail="a@b.org")
        rules = {"mail": [required, unique(self.database, "users", "mail")]}
        self.assertEqual(validate({"mail": "a@b.org"}, rules), {"mail": "is taken"})
        self.assertEqual(validate({"mail": "b@b.org"}, rules), {})


class ValidationTest(unittest.TestCase):
    def test_the_first_fault_of_each_field_is_named(self):
        rules = {"mail": [required, email], "age": [integer], "name": [at_most(2)]}
        faults = {"mail": "is missing", "age": "is not a whole number", "name": "is longer than 2"}
        self.assertEqual(validate({"age": "x", "name": "xyz"}, rules), faults)

    def test_only_what_there_are_rules_for_is_taken(self):
        self.assertEqual(clean({"a": "1", "admin": "yes"}, {"a": [integer]}), {"a": "1"})
        with self.assertRaises(Invalid) as caught:
            clean({}, {"a": [required]})
        self.assertEqual((caught.exception.status, caught.exception.faults), (400, {"a": "is missing"}))


class UtilsTest(unittest.TestCase):
    def test_text(self):
        self.assertEqual(slug("Été à Paris!"), "ete-a-paris")
        self.assertEqual((shorten("abcdef", 4), shorten("abc", 4)), ("abc…", "abc"))
        self.assertEqual((plural(1, "file"), plural(2, "entry", "entries")), ("1 file", "2 entries"))

    def test_mappings(self):
        self.assertEqual(merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}), {"a": {"b": 3, "c": 2}})
        self.assertEqual((pick({"a": {"b": 1}}, "a.b"), pick({"a": {}}, "a.b", 0)), (1, 0))

    def test_a_cache_forgets_what_was_used_longest_ago(self):
        cache = Cache(2)
        for key in "abac":
            cache.get(key, lambda: key)
        self.assertEqual((len(cache), cache.get("a", lambda: "new"), cache.get("b", lambda: "new")), (2, "a", "new"))

    def test_a_cache_forgets_what_is_too_old(self):
        now = [0.0]
        cache = Cache(1, seconds=10, clock=lambda: now[0])
        cache.get("a", lambda: 1)
        now[0] = 10.0
        self.assertEqual(cache.get("a", lambda: 2), 2)
