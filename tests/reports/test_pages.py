import pytest
from jinja2 import TemplateNotFound, UndefinedError

from voxelwave.reports.pages import relative_url, render

FACTS = "reports/templates/facts.html"
PAGE = "reports/templates/page.html"


def test_what_a_page_is_told_stays_text_and_bytes_that_are_no_text_are_written_out():
    page = render(PAGE, title="<b>&amp; caf\udce9")
    assert page.count("&lt;b&gt;&amp;amp; caf\\udce9") == 2
    page.encode("utf-8")


def test_a_fact_that_is_missing_is_an_error_and_no_gap():
    with pytest.raises(UndefinedError, match="title"):
        render(PAGE)


@pytest.mark.parametrize("name", ["../pyproject.toml", "/etc/passwd", "reports/templates/none.html"])
def test_only_files_of_the_package_are_templates(name):
    with pytest.raises(TemplateNotFound):
        render(name)


def test_the_path_of_a_picture_leads_nowhere_but_below_the_page():
    assert relative_url("//host/a b.jpg") == ".///host/a%20b.jpg"
    assert relative_url("javascript:x") == "./javascript%3Ax"
