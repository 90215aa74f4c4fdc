"""The check of how docstrings and comments begin."""

import pytest
from check_words import REFUSED, findings, main
from commands import ROOT

FINISHED = ("aggregation", "regularization", "routes", "weighting")

OPENINGS = ["What", "Those", "Of", "Whose", "Its", "Their", "As for", "As in", "Likewise", "Which"]
OPENINGS += ["Looks no more", "That", "The same", "So", "This many", "It", "They", "Them", "He"]

SOURCE = '''"""What this is."""

import os  # which is used

# The first line of a block is its opening:
# what follows on the next one is not.
LIMIT = 3
"""Its bound."""


class Rule:
    """Which rule.

    Attributes:
        name: Of the rule.
        size (int): Number of words, and
            those of the title.
    """

    size: int
    """That of the rule."""

    def apply(self, text):
        """
        As for the rule.

        Args:
            text: Likewise.
            *more: `What` is quoted, so it may.

        Returns:
            Their words, joined;
            it may be long.

        Raises:
            ValueError: It is empty.

        Whose last words are those of a paragraph, and may.
        """
        # So it goes
        return os.fspath(text) + "# what is no comment"
'''

REFUSED_LINES = {
    1: "What this is.",
    3: "which is used",
    8: "Its bound.",
    12: "Which rule.",
    15: "Of the rule.",
    21: "That of the rule.",
    25: "As for the rule.",
    28: "Likewise.",
    32: "Their words, joined;",
    36: "It is empty.",
    40: "So it goes",
}


def test_finds_each_kind_and_nothing_else():
    assert dict(findings(SOURCE)) == REFUSED_LINES


@pytest.mark.parametrize("opening", OPENINGS)
def test_refuses_whole_words_in_either_case(opening):
    assert REFUSED.match(f"{opening} is") and REFUSED.match(f"{opening.lower()}.")
    assert not REFUSED.match(f"{opening}x is")


def test_prints_file_and_line(tmp_path, capsys):
    file = tmp_path / "folder" / "rule.py"
    file.parent.mkdir()
    file.write_text('"""Return a rule."""\n\n# they\n')
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{file}:3: they\n"


def test_core_is_clean(capsys):
    core = ROOT / "mtl_plugins"
    main([str(path) for path in [*core.glob("*.py"), *(core / name for name in FINISHED)]])
    assert capsys.readouterr().out == ""
