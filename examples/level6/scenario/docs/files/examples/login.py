"""Checks a password, keeps a session, and guards a page."""

from webapp_framework import Application, Response, Router, clean
from webapp_framework.auth import check_password, hash_password, log_in, signed_in
from webapp_framework.core import Forbidden
from webapp_framework.testing import Client
from webapp_framework.validation import required

KEY = b"read this from a file that only the server may read"
USERS = {"ali": hash_password("open sesame")}

application = Application(Router())


@application.route("/login", "POST")
def login(request):
    """Takes a form with user and password."""
    form = clean(request.form(), {"user": [required], "password": [required]})
    if not check_password(form["password"], USERS.get(form["user"], "")):
        raise Forbidden("user and password do not belong together")
    return log_in(Response.redirect("/"), form["user"], KEY)


@application.route("/")
@signed_in(KEY)
def home(request):
    """Greets a user; everybody else sees the form."""
    return f"hello {request.state['user']}"


if __name__ == "__main__":
    client = Client(application)
    print(client.get("/").status, client.submit("/login", user="ali", password="open sesame").status, client.get("/").text)
