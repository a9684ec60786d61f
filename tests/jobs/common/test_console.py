import io

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
