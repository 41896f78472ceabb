"""Reads the pages that tests look at."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Checks that tags are closed in order; collects text and what is loaded from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.sources = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
