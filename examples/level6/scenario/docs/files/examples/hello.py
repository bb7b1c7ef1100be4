"""Says hello. Serve it with: python3 -m webapp_framework.cli serve examples.hello:application"""

from webapp_framework import Application, Router
from webapp_framework.testing import Client

application = Application(Router())


@application.route("/hello/{name}")
def hello(request):
    """Greets whoever is in the path."""
    return f"hello {request.params['name']}"


if __name__ == "__main__":
    print(Client(application).get("/hello/world").text)
