"""Headers, cookies, status and templates."""

import unittest

from webapp_framework.http import Headers, is_error, make_cookie, negotiate, phrase, read_cookies
from webapp_framework.templating import Safe, TemplateError, page, render


class HttpTest(unittest.TestCase):
    def test_names_of_headers_know_no_case(self):
        self.assertEqual(Headers([("Accept", "a")]).get("ACCEPT"), "a")

    def test_values_of_one_name_are_joined(self):
        headers = Headers([("a", "1"), ("A", "2")])
        self.assertEqual((headers.get("a"), headers.all("a"), "b" in headers), ("1, 2", ["1", "2"], False))

    def test_a_header_has_one_line(self):
        with self.assertRaises(ValueError):
            Headers([("a", "1\r\nb: 2")])

    def test_the_client_chooses_what_it_likes_best(self):
        offers = ["text/html", "application/json"]
        self.assertEqual(negotiate("application/json, text/*;q=0.5", offers), "application/json")
        self.assertEqual(negotiate("image/png", offers), "")

    def test_cookies_are_read_and_kept_from_scripts_and_other_sites(self):
        self.assertEqual(read_cookies("a=1; b=2"), {"a": "1", "b": "2"})
        self.assertIn("HttpOnly", make_cookie("a", "1"))
        self.assertIn("SameSite=Lax", make_cookie("a", "1"))

    def test_a_status_has_words(self):
        self.assertEqual((phrase(404), phrase(499), is_error(400), is_error(399)), ("Not Found", "Client Error", True, False))


class TemplateTest(unittest.TestCase):
    def test_values_are_escaped_unless_they_are_markup(self):
        self.assertEqual(render("{{ a }}{{ b }}", a="<b>", b=Safe("<i>")), "&lt;b&gt;<i>")

    def test_names_have_fields(self):
        self.assertEqual(render("{{ a.b }}", a={"b": 1}), "1")

    def test_blocks_are_nested(self):
        source = "{% for x in xs %}{% if x.on %}[{{ x.n }}]{% else %}-{% end %}{% end %}"
        self.assertEqual(render(source, xs=[{"n": 1, "on": True}, {"n": 2, "on": False}]), "[1]-")

    def test_an_empty_loop_has_an_else(self):
        self.assertEqual(render("{% for x in xs %}{{ x }}{% else %}none{% end %}", xs=[]), "none")

    def test_what_is_wrong_is_said(self):
        for source in ("{{ missing }}", "{% for x in %}{% end %}", "{% if a %}", "{% end %}", "{{ a.__class__ }}"):
            with self.subTest(source), self.assertRaises(TemplateError):
                render(source, a=1)

    def test_a_page_of_an_error_is_not_kept(self):
        self.assertEqual(page("{{ a }}", 404, a=1).header("Cache-Control"), "no-store")
        self.assertEqual(page("{{ a }}", a=1).header("Content-Type"), "text/html; charset=utf-8")
