"""`limner list KIND`: names, options, defaults and ranges, without the libraries that using them takes."""

import json

import pytest

from limner.configs import listing
from limner.configs.errors import InputError
from limner.configs.on_demand import on_demand
from limner.configs.options import described
from limner.configs.registry import NOUNS, entries, imported


@pytest.mark.parametrize("kind", NOUNS)
def test_what_is_listed_is_what_the_classes_say(kind, capsys):
    """The sources tell without torch what the imported classes tell."""
    listing.main([kind, "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(entries(kind)) and rows
    filled = listing.FILLED.get(kind, ())
    for name, entry in entries(kind).items():
        row = rows[name]
        assert "error" not in row and row["does"] == entry.doc != "", name
        there = described(imported(entry), filled)
        assert described(getattr(on_demand(entry.module), entry.attribute), filled) == there, name
        assert row["options"] == json.loads(json.dumps(there)), name


def test_the_list_for_people(capsys):
    listing.main(["reward"])
    text = capsys.readouterr().out
    assert "structure " in text and 'unit (str, default "TI"): A step' in text
    assert "least (int, 1 to 1,000,000, default 1): Fewest steps" in text
    assert "endpoint (name in endpoints:, needed): Who judges" in text
    assert 'encoder (name in encoders:, default "default")' in text
    assert 'template (name or file, default "pictures.v1")' in text
    assert 'pattern (alternating | think-vis, default "alternating")' in text


def test_one_that_cannot_be_imported_does_not_stop_the_list(monkeypatch, capsys):
    def broken(entry):
        if entry.name == "format":
            raise InputError("it is broken")
        return imported(entry)

    monkeypatch.setattr(listing, "_thing", broken)
    listing.main(["reward"])
    text = capsys.readouterr().out
    assert "cannot be used: it is broken" in text and "structure" in text


def test_an_unknown_kind():
    with pytest.raises(InputError, match="reward.*benchmark.*family"):
        listing.main(["rewards"])
