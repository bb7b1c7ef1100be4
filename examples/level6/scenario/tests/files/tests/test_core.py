"""Application, request, response and routing."""

import io
import unittest
from wsgiref.util import setup_testing_defaults

from webapp_framework.core import Application, BadRequest, Forbidden, Request, Response
from webapp_framework.routing import NoRoute, Router, compile_pattern, fill
from webapp_framework.testing import Client


def make_client() -> Client:
    """Returns a client of a small application."""
    application = Application(Router())

    @application.route("/")
    def home(request):
        return "hello"

    @application.route("/users/{id:int}")
    def user(request):
        return request.params

    @application.route("/echo", "POST")
    def echo(request):
        return Response.of_json(request.json(), 201)

    @application.route("/secret")
    def secret(request):
        raise Forbidden("not for you")

    @application.route("/broken")
    def broken(request):
        raise KeyError("a fault")

    return Client(application)


class ApplicationTest(unittest.TestCase):
    def test_text_becomes_a_response(self):
        self.assertEqual(make_client().get("/").text, "hello")

    def test_a_path_that_fits_no_route_is_404(self):
        self.assertEqual(make_client().get("/nowhere").status, 404)
        self.assertEqual(make_client().get("/users/x").status, 404)

    def test_wrong_method_is_405_and_says_what_is_taken(self):
        answer = make_client().get("/echo")
        self.assertEqual((answer.status, answer.text), (405, "/echo takes POST"))

    def test_fields_of_the_path_reach_the_handler(self):
        self.assertEqual(make_client().get("/users/7").json(), {"id": "7"})

    def test_json_goes_both_ways_and_the_status_is_kept(self):
        answer = make_client().post("/echo", [1, 2])
        self.assertEqual((answer.status, answer.json()), (201, [1, 2]))

    def test_middleware_wraps_the_first_outermost(self):
        client = make_client()
        client.application.use(lambda handler: lambda request: handler(request) + "!")
        client.application.use(lambda handler: lambda request: handler(request).upper())
        self.assertEqual(client.get("/").text, "HELLO!")

    def test_an_error_of_the_client_is_told(self):
        answer = make_client().get("/secret")
        self.assertEqual((answer.status, answer.text), (403, "not for you"))

    def test_a_fault_of_the_program_is_not_told(self):
        answer = make_client().get("/broken")
        self.assertEqual((answer.status, answer.text), (500, "internal error"))

    def test_it_answers_a_wsgi_server(self):
        environ = {"PATH_INFO": "/echo", "REQUEST_METHOD": "POST", "CONTENT_LENGTH": "4", "wsgi.input": io.BytesIO(b"true")}
        setup_testing_defaults(environ)
        seen = []
        body = make_client().application(environ, lambda status, headers: seen.append((status, dict(headers))))
        self.assertEqual(b"".join(body), b"true")
        self.assertEqual(seen[0][0], "201 Created")
        self.assertEqual(seen[0][1]["Content-Length"], "4")


class RequestTest(unittest.TestCase):
    def test_the_last_value_of_a_query_wins(self):
        self.assertEqual(Request(query="a=1&a=2&b=").query, {"a": "2", "b": ""})

    def test_bad_json_is_the_clients_fault(self):
        with self.assertRaises(BadRequest):
            Request(body=b"{").json()

    def test_a_redirect_stays_on_the_site(self):
        self.assertEqual(Response.redirect("/in").header("location"), "/in")
        with self.assertRaises(ValueError):
            Response.redirect("//elsewhere.example")


class RoutingTest(unittest.TestCase):
    def test_a_pattern_means_what_it_says(self):
        self.assertEqual(compile_pattern("/files/{rest:path}").fullmatch("/files/a/b")["rest"], "a/b")
        self.assertIsNone(compile_pattern("/files/{name}").fullmatch("/files/a/b"))
        self.assertIsNone(compile_pattern("/a.b").fullmatch("/axb"))

    def test_a_name_leads_back_to_a_path(self):
        router = Router()
        router.add("GET", "/users/{id:int}", print, name="user")
        self.assertEqual(router.path_for("user", id=7), "/users/7")
        self.assertEqual(fill("/tags/{tag}", tag="a b"), "/tags/a%20b")
        with self.assertRaises(NoRoute):
            router.path_for("nobody")
