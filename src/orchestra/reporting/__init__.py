"""Run reports: one plan's run as a page and as Markdown. Pure: a record goes in, text comes out; who calls writes the file."""
