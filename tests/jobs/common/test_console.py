import io

from rich.table import Table

from voxelwave.jobs.common.console import Console, tracked


def test_a_line_is_printed_as_it_is_however_long_and_whatever_it_holds():
    file = io.StringIO()
    line = "cannot resume [red]runs[/red]/[a]: 12 of 1e-3 " + "x" * 300
    Console(file=file, width=40).say(line, "second")
    assert file.getvalue() == f"{line}\nsecond\n"


def test_a_file_has_no_edge_and_a_width_that_is_given_stays():
    assert Console(file=io.StringIO()).width >= 180
    assert Console(file=io.StringIO(), width=60).width == 60


def test_tracked_yields_every_item_in_order_and_stops_where_its_reader_does(capsys):
    assert list(tracked(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    stream = tracked(range(5), "numbers")
    assert next(stream) == 0
    stream.close()
    assert capsys.readouterr().out == ""


def test_no_name_moves_the_cursor_or_begins_a_line_wherever_it_is_printed():
    file, name = io.StringIO(), "a\x1b[2J\x9b1m\r\nprepared: 999 mri"
    console = Console(file=file, force_terminal=True, color_system=None, width=200)
    table = Table("file", title=name)
    table.add_row(name)
    console.say(f"left out {name}", "second")
    console.print(table, name)
    shown = file.getvalue()
    assert not {"\x1b", "\x9b", "\r"} & set(shown)
    assert shown.count("prepared: 999") == 4
    assert not any(line.strip().startswith("prepared") for line in shown.splitlines())
