"""Every message to the user says what is wrong and then what to do; checked from the source."""

import ast
import itertools
import re

import pytest

from tests.root import ROOT

PACKAGES = ("hydrahead_jax", "train")
PLACEHOLDER = "X"
ADVICE = "choose X"  # stands for a variable `advice`, whose texts are checked by themselves
LONGEST = 300
PRIVATE = {  # what a stranger misreads, and a plain form
    r"\bwhole\b(?! numbers?\b)": "complete",
    r"\bkept\b": "saved",
    r"\bbeats?\b": "heartbeat",
    r"\bonce more\b": "again",
    r"\btold\b": "distinguished",
    r"\bas (it is|they are)\b": "unchanged",
    r"\bmend(ed)?\b": "correct",
    r"(?<!there )\b(is|are) (no|none)\b": "is not a, is not one of",
    r"\bfor want of\b": "for lack of",
}
_VERBS = """add allocate allow ask change check choose continue copy correct delete download encode
    export free give install leave lengthen lower make move name pass prepare put raise remove
    rename run save score set shorten start take train use write"""
VERB = rf"({'|'.join(_VERBS.split())})"
INSTRUCTION = re.compile(
    rf"([;,:]|\bso|\band|\bor) {VERB}\b|\b(must|needs?)\b|\bat (least|most)\b|pip install"
)
EXCEPTIONS = {"the export failed: X": "the message of the export follows"}
PASSED_ON = re.compile(r"([a-z_]+ )?X?(, X)?[a-z_]*: X")  # the place, and another message


class Messages(ast.NodeVisitor):
    """Reads the messages that a module raises.

    Attributes:
      found: the line of each message, and the text.
      advice: the texts that variables named `advice` are given.
    """

    def __init__(self, source: str, errors: set[str]):
        self.errors, self.found, self.advice, self._texts = errors, [], [], {}
        tree = ast.parse(source)
        for node in tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() as value):
                    self._texts[name] = self.render(value)
                case ast.FunctionDef(name=name):
                    ends = [end.value for end in ast.walk(node) if isinstance(end, ast.Return)]
                    self._texts[name] = [text for end in ends if end for text in self.render(end)]
        self.visit(tree)

    def visit_Raise(self, node: ast.Raise) -> None:
        match node.exc:
            case ast.Call(func=ast.Name(id=name), args=[text]) if name in self.errors:
                self.found += [(node.lineno, text) for text in self.render(text)]

    def visit_Assign(self, node: ast.Assign) -> None:
        if [ast.unparse(target) for target in node.targets] == ["advice"]:
            self.advice += self.render(node.value)

    def render(self, node: ast.expr) -> list[str]:
        """Returns all texts that an expression can have; what only a run can know is X."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(texts) for texts in itertools.product(*map(self.render, parts))]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [a + b for a in self.render(left) for b in self.render(right)]
            case ast.IfExp(body=body, orelse=orelse):
                return self.render(body) + self.render(orelse)
            case ast.FormattedValue(value=value):
                return self.render(value)
            case ast.Name(id="advice"):
                return [ADVICE]
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
                return self._texts.get(name) or [PLACEHOLDER]
        return [PLACEHOLDER]


def faults(text: str) -> list[str]:
    """Says what is wrong with a message."""
    if text in EXCEPTIONS or text == PLACEHOLDER or PASSED_ON.fullmatch(text):
        return []
    found = [f"write {new} for {old!r}" for old, new in PRIVATE.items() if re.search(old, text)]
    if "\n" in text or text != text.strip() or re.search(r"[^.]\.$", text):
        found.append("one line, no period at its end")
    if len(text) > LONGEST or len(re.findall(r"[.!?] +[A-Z]", text)) > 1:
        found.append(f"at most {LONGEST} characters and two sentences")
    if not re.match(r"['\"(]?(\w|--|<)", text) or re.match(rf"(?i){VERB}\b[^=:.-]", text):
        found.append("begin with what is wrong")
    if not INSTRUCTION.search(text):
        found.append("end with what to do")
    return found


def sources() -> dict[str, str]:
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def user_errors(sources: dict[str, str]) -> set[str]:
    """Returns the names of UserError and of the project's subclasses of it."""
    bases = {
        name: set(re.findall(r"\w+", of))
        for source in sources.values()
        for name, of in re.findall(r"^class (\w+)\((.*)\):", source, re.MULTILINE)
    }
    errors = {"UserError"}
    while new := {name for name, of in bases.items() if of & errors} - errors:
        errors |= new
    return errors


def test_every_message_says_what_is_wrong_and_what_to_do():
    read = sources()
    errors = user_errors(read)
    modules = {
        place: Messages(source, errors) for place, source in read.items() if "Error" in source
    }
    found = [(f"{place}:{line}", text) for place, m in modules.items() for line, text in m.found]
    advice = [text for module in modules.values() for text in module.advice]
    assert len(found) > 200 and len(errors) > 1
    bad = [f"{place}: {text!r}: {wrong}" for place, text in found if (wrong := faults(text))]
    assert not bad, "\n".join(bad)
    assert advice and all(re.match(VERB, text) for text in advice), advice


@pytest.mark.parametrize(
    "message, words",
    [
        ("there is no folder X", "what to do"),
        ("Give another folder, which needs room", "what is wrong"),
        ("there is no folder X; make it.", "no period"),
        ("there is no folder X;\nmake it", "one line"),
        ("X is empty. It needs text. It needs more. Give some", "two sentences"),
        ("X is empty; give " + "more " * 60 + "text", "300 characters"),
        ("the whole folder is empty; give text", "complete"),
        ("X is no folder; give one", "is not a"),
        ("X is damaged; give the command once more", "again"),
    ],
)
def test_a_bad_message_is_found(message, words):
    assert any(words in fault for fault in faults(message))


def test_messages_are_read_from_every_form_of_a_raise():
    source = """
_HOW = "use another"
def _advice(n):
    return f"at most {n}" if n else "no limit"
class Full(UserError): ...
def check(path):
    raise UserError(f"{path} is "
                    f"full; {_HOW}")
    raise Full("there is no room: " + _advice(3))
    raise ValueError("not for users")
"""
    errors = user_errors({"a.py": source})
    assert [text for _, text in Messages(source, errors).found] == [
        "X is full; use another",
        "there is no room: at most X",
        "there is no room: no limit",
    ]
