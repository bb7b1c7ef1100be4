"""Shows rows of a database as a page and as JSON."""

from webapp_framework import Application, Database, Model, Router, page
from webapp_framework.database import register
from webapp_framework.testing import Client

PAGE = "<ul>{% for note in notes %}<li>{{ note.text }}</li>{% else %}<li>nothing yet</li>{% end %}</ul>"


class Note(Model):
    """What somebody wanted to remember."""

    table = "notes"
    columns = ("text",)


router = Router()
application = Application(router)
database = Database()
Note.create_table(database)
register(router, Note, database)


@application.route("/")
def home(request):
    """Shows all notes."""
    return page(PAGE, notes=Note.find(database))


if __name__ == "__main__":
    Note.add(database, text="tea & <b>biscuits</b>")
    client = Client(application)
    print(client.get("/").text)
    print(client.get("/notes").text)
