"""The document as a page for people: one file that loads nothing, runs nothing and can publish nothing."""

import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final

from service.asyncapi.examples import example

Schema = dict[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #0a6cbd; }
@media (prefers-color-scheme: dark) { :root { --mark: #6cb8f0; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1.25rem 4rem; font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 1rem 0 .25rem; font-size: 2rem; }
h2 { margin: 3rem 0 .5rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
h3 { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
summary { margin-top: 1rem; color: var(--mark); cursor: pointer; font-size: .9rem; }
h4 { margin: 1rem 0 .25rem; font-size: .8rem; text-transform: uppercase; letter-spacing: .05em; opacity: .7; }
p { margin: .5rem 0; }
a { color: var(--mark); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font: .875em/1.5 ui-monospace, Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { margin: .25rem 0; padding: .75rem; overflow-x: auto; background: var(--soft); border-radius: .4rem; }
nav { columns: 15rem; font-size: .9rem; }
nav div { break-inside: avoid; margin-bottom: 1rem; }
nav a { display: block; }
nav strong a { color: inherit; }
article { margin: 1rem 0; padding: 1rem; border: 1px solid var(--line); border-radius: .5rem; }
.where { font-size: .875rem; opacity: .85; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th { text-align: left; font-weight: 600; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { white-space: nowrap; }
small { opacity: .75; }
@media (max-width: 40rem) {
  body { padding: .5rem .75rem 3rem; }
  article { padding: .75rem; }
  thead { display: none; }
  tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td { display: block; padding: 0; border: 0; }
}
@media print {
  :root { color-scheme: light; }
  body { max-width: none; font-size: 10pt; }
  a { color: inherit; }
  article, tr, pre { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  h2, h3, h4 { break-after: avoid; }
  pre, table { font-size: 8pt; }
}
"""


def render(document: dict[str, Any]) -> str:
    """The page; every text of the document is escaped."""
    return "".join(_Page(document).parts())


class _Page:
    def __init__(self, document: dict[str, Any]) -> None:
        self._info = document["info"]
        self._channels = document["channels"]
        self._operations = document["operations"]
        self._limits = document["x-limits"]
        self._subscriber_queue = document["x-subscriber-queue"]
        self._messages = document["components"]["messages"]
        self._schemas = document["components"]["schemas"]

    def parts(self) -> Iterator[str]:
        title = escape(self._info["title"])
        yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        yield f"<header><h1>{title}</h1><p>Version {escape(self._info['version'])}. "
        yield 'The same for programs: <a href="asyncapi">asyncapi</a>.</p></header>'
        yield from self._contents()
        yield _prose(self._info["description"])
        for tag in self._info["tags"]:
            yield f'<h2 id="{_anchor(tag["name"])}">{_title(tag["name"])}</h2>{_prose(tag["description"])}'
            for name in self._tagged(tag["name"]):
                yield from self._message(name)
        yield '<h2 id="parts">What messages consist of</h2>'
        for name in self._parts():
            yield self._schema(name)
        yield '<h2 id="errors">Error codes</h2>'
        yield _table(
            ("Code", "When"),
            ((_code(code), _inline(text)) for code, text in self._schemas["ErrorCode"]["x-enumDescriptions"].items()),
        )
        yield f"<h4>Example of a refusal</h4>{_json(example(self._schemas['Refused'], self._schemas))}"
        yield '<h2 id="settings">Limits and settings</h2>'
        yield _json({"x-limits": self._limits, "x-subscriber-queue": self._subscriber_queue})
        yield "</body></html>"

    def _contents(self) -> Iterator[str]:
        yield "<nav>"
        for tag in self._info["tags"]:
            yield f'<div><strong><a href="#{_anchor(tag["name"])}">{_title(tag["name"])}</a></strong>'
            yield "".join(f'<a href="#{_anchor(name)}">{_code(name)}</a>' for name in self._tagged(tag["name"]))
            yield "</div>"
        headings = re.findall(r"^## (.+)$", self._info["description"], re.MULTILINE)
        yield "<div><strong>Also here</strong>"
        yield "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading in headings)
        yield '<a href="#parts">What messages consist of</a><a href="#errors">Error codes</a>'
        yield '<a href="#settings">Limits and settings</a></div></nav>'

    def _tagged(self, tag: str) -> list[str]:
        return [name for name, operation in self._operations.items() if {"name": tag} in operation["tags"]]

    def _parts(self) -> list[str]:
        """Schemas that are not the body of a message themselves."""
        bodies = {message["payload"]["$ref"].rpartition("/")[2] for message in self._messages.values()}
        return [name for name in self._schemas if name not in bodies]

    def _message(self, name: str) -> Iterator[str]:
        message, operation = self._messages[name], self._operations[name]
        exchange = self._channels[name]["bindings"]["amqp"]["exchange"]
        yield f'<article id="{_anchor(name)}"><h3>{_code(name)}</h3>'
        yield f"<p>{_inline(message['summary'])} {_inline(message.get('description', ''))}</p>"
        yield f'<p class="where">{escape(exchange["type"].capitalize())} exchange {_code(exchange["name"])}, '
        yield f"routing key {_code(self._channels[name]['address'])}; {self._link(message['headers'])}, "
        yield f"{self._link(message['x-amqp-properties'])}"
        if "reply" in operation:
            reply = self._messages[f"{name}.reply"]
            done = self._schemas[reply["payload"]["$ref"].rpartition("/")[2]]["oneOf"][0]
            yield f"; answered with {self._type(done['properties']['data'])}"
        yield "</p>"
        yield self._fields(self._schemas[message["payload"]["$ref"].rpartition("/")[2]])
        if keys := message.get("x-stale-keys"):
            yield f"<h4>Cache keys made stale</h4><p>{', '.join(map(_code, keys))}</p>"
        yield f"<h4>Example</h4>{_json(message['examples'][0]['payload'])}"
        if "reply" in operation:
            yield f"<details><summary>Reply</summary>{_json(reply['examples'][0]['payload'])}</details>"
        yield "</article>"

    def _schema(self, name: str) -> str:
        schema = self._schemas[name]
        body = self._fields(schema) if "properties" in schema else f"<p>{self._type(schema)}</p>"
        return (
            f'<article id="{_anchor(name)}"><h3>{escape(schema.get("title", name))}</h3>'
            f"<p>{_inline(schema.get('description', ''))}</p>{body}</article>"
        )

    def _fields(self, schema: Schema) -> str:
        required = schema.get("required", [])
        return _table(
            ("Field", "Type", "Required", "What it is"),
            (
                (
                    _code(name),
                    self._type(field),
                    "required" if name in required else f"<small>{_default(field)}</small>",
                    _inline(field.get("description", "")),
                )
                for name, field in schema["properties"].items()
            ),
        )

    def _type(self, schema: Schema) -> str:
        """A schema in a few words, with links to the schemas it refers to."""
        if "$ref" in schema:
            return self._link(schema)
        if schema.get("format") == "decimal":
            words = '<a href="#Numbers-and-times">decimal</a>'
        elif choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            words = " or ".join(map(self._type, choices))
        elif "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            words = " ".join(_code(value if isinstance(value, str) else json.dumps(value)) for value in values)
        elif schema.get("type") == "array":
            words = f"list of {self._type(schema['items'])}"
        elif "properties" in schema:
            words = f"object of {', '.join(map(_code, schema['properties']))}"
        else:
            kind: str = schema.get("format") or schema.get("type", "anything")
            words = escape(_PLAIN_TYPES.get(kind, kind))
        return words + _limits(schema)

    def _link(self, reference: Schema) -> str:
        name = reference["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{escape(self._schemas[name].get("title", name))}</a>'


_PLAIN_TYPES: Final = {"string": "text", "boolean": "true or false"}

# From here on a maximum is that of the storage, which tells a reader nothing.
_LARGEST_ID: Final = 2**31 - 1

# How a limit reads.
_LIMITS: Final = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "like {}",
}


def _limits(schema: Schema) -> str:
    is_decimal = schema.get("format") == "decimal"
    said = [
        words.format(_code(schema[name]) if name == "pattern" else f"{schema[name]:,}")
        for name, words in _LIMITS.items()
        if name in schema
        and not (name == "maximum" and schema[name] >= _LARGEST_ID)
        and not (name == "pattern" and is_decimal)
    ]
    return f" <small>{', '.join(said)}</small>" if said else ""


def _default(field: Schema) -> str:
    return f"default {escape(json.dumps(field['default']))}" if field.get("default") is not None else ""


def _title(name: str) -> str:
    return escape(name.replace("_", " ").capitalize())


def _anchor(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def _code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>"


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else "<p>No fields.</p>"


def _prose(markdown: str) -> str:
    """The little Markdown that descriptions use: headings, lists, paragraphs and code."""
    return "".join(map(_block, markdown.split("\n\n")))


def _block(text: str) -> str:
    if text.startswith("## "):
        return f'<h2 id="{_anchor(text[3:])}">{escape(text[3:])}</h2>'
    if text.startswith("- "):
        items = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
        return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(text, quote=False), flags=re.DOTALL)
