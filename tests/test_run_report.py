"""Which pictures of a run its contact sheet shows."""

from feedface.inference.run_report import most_alike


def row(prompt, similarity):
    return {"prompt": prompt, "similarity": similarity}


def test_the_most_alike_of_each_prompt_come_first_and_those_without_a_likeness_last():
    rows = [row("a", None), row("b", 0.0), row("a", -0.1), row("b", 0.5), row("a", 0.2)]
    assert most_alike(rows, 1) == [rows[4], rows[3]]
    assert most_alike(rows, 9) == [rows[4], rows[2], rows[0], rows[3], rows[1]]


def test_where_nobody_was_given_the_first_are_shown():
    rows = [row("a", None), row("a", None)]
    assert most_alike(rows, 1) == rows[:1]
