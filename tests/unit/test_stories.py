"""Handlers of the two stories, without a server."""

from __future__ import annotations

import pytest

from bester.broker.wire.messages import REFUSED
from bester.handlers.stories.deployment import s1, s2, s3
from bester.handlers.stories.letters import afrikaans, english, portuguese
from bester.handlers.testing import Sent, Tester

LETTER = {"to": "G@magical-boks", "text": "Bom dia, minha amiga!", "read_in": None, "written_in": None, "by": None}


async def test_m1_of_s1_passes_to_m2_which_sends_to_s2_as_m1() -> None:
    tester = Tester(s1.app, server="S1")
    assert (await tester.send("M1", {"text": "hi"}, user="U1")).commands == [
        Sent("sendHandler", ["M2"], {"text": "hi"})
    ]
    sent = await tester.send("M2", {"text": "hi"}, user="U1", path=["S1/M1"])
    assert sent.commands == [Sent("sendServers", ["S2"], {"text": "hi"}, "M1")]


async def test_m1_of_s2_sends_to_s3_under_the_same_type() -> None:
    sent = await Tester(s2.app, server="S2").send("M1", {"text": "hi"}, peer="S1")
    assert sent.commands == [Sent("sendServers", ["S3"], {"text": "hi"})]


async def test_m1_of_s3_delivers_to_u2_with_the_path() -> None:
    path = ["S1/M1", "S1/M2", "S2/M1"]
    sent = await Tester(s3.app, server="S3").send("M1", {"text": "hi"}, peer="S2", path=path)
    assert sent.commands == [Sent("sendClients", ["U2"], {"message": {"text": "hi"}, "came_by": path})]


async def test_portuguese_is_translated_and_passed_to_english() -> None:
    sent = await Tester(portuguese.app).send(
        "portuguese", {"to": "G@magical-boks", "text": "Bom dia, minha amiga!"}, user="T"
    )
    expected = LETTER | {"text": "Good morning, my friend!", "written_in": "portuguese"}
    assert sent.commands == [Sent("sendHandler", ["english"], expected)]


async def test_portuguese_for_an_afrikaans_reader_passes_through_english() -> None:
    letter = {"to": "G", "text": "bom dia", "read_in": "afrikaans"}
    [to_english] = (await Tester(portuguese.app).send("portuguese", letter, user="T")).commands
    assert to_english.targets == ["english"]
    [to_afrikaans] = (await Tester(english.app).send("english", to_english.data, user="T")).commands
    assert to_afrikaans.targets == ["afrikaans"]
    delivered = await Tester(afrikaans.app).send("afrikaans", to_afrikaans.data, user="T")
    expected = {"by": "T", "text": "goeie môre", "written_in": "portuguese"}
    assert delivered.commands == [Sent("sendClients", ["G"], expected)]


async def test_letter_to_another_box_is_sent_with_its_writer() -> None:
    sent = await Tester(english.app).send("english", {"to": "G@magical-boks", "text": "hello", "by": "Santa"}, user="T")
    assert sent.commands == [Sent("sendServers", ["magical-boks"], LETTER | {"to": "G", "text": "hello", "by": "T"})]


async def test_letter_from_another_box_names_that_box_behind_its_writer() -> None:
    letter = LETTER | {"to": "G", "text": "hello", "by": "T"}
    sent = await Tester(english.app).send("english", letter, peer="magic-machine")
    expected = {"by": "T@magic-machine", "text": "hello", "written_in": "english"}
    assert sent.commands == [Sent("sendClients", ["G"], expected)]


async def test_afrikaans_with_read_in_english_is_translated() -> None:
    letter = {"to": "T@magic-machine", "text": "Hallo, my vriend!", "read_in": "english"}
    sent = await Tester(afrikaans.app).send("afrikaans", letter, user="G")
    expected = LETTER | {"to": "T@magic-machine", "text": "Hello, my friend!", "written_in": "afrikaans"}
    assert sent.commands == [Sent("sendHandler", ["english"], expected)]


async def test_letter_from_another_box_is_not_sent_on() -> None:
    result = await Tester(english.app).send("english", {"to": "G@third-box", "text": "hello"}, peer="magic-machine")
    assert (result.reason, result.note) == ("refused", "letters from other boxes are for users of this one")


@pytest.mark.parametrize(
    "letter", [{"text": "hello"}, {"to": "G"}, {"to": ["G"], "text": "hello"}, "hello", {"to": "@b", "text": ""}]
)
async def test_data_that_is_no_letter_is_refused(letter: object) -> None:
    result = await Tester(english.app).send("english", letter, user="T")
    assert result.status == REFUSED
    assert result.note
