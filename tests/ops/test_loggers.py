import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.ops.loggers import logger, printable


@given(text=st.text(st.characters(codec=None, categories=None)))
def test_a_printable_text_is_one_line_that_no_terminal_acts_on_and_stays_as_it_is(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in shown)
    assert shown.encode("utf-8").decode("utf-8") == printable(shown) == shown


@pytest.mark.parametrize("text", ["Müller 山 👩‍⚕️ a\u00a0b", "$HOME/[red]\\n"])
def test_what_a_terminal_shows_as_it_is_stays(text):
    assert printable(text) == text


def test_a_record_of_the_log_is_one_line(caplog):
    with caplog.at_level(logging.WARNING):
        logger.warning("left out: %s", "a\x1b[2J\x9b1m\nprepared: 9")
    assert caplog.messages == ["left out: a\\x1b[2J\\x9b1m\\nprepared: 9"]
