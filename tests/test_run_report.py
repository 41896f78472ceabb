"""Which pictures of a run its contact sheet shows."""

from feedface.inference.run_report import most_alike


def row(prompt, similarity):
    return {"prompt": prompt, "similarity": similarity}


def test_the_most_alike_of_each_prompt_come_first_and_those_without_a_likeness_not():
    rows = [row("a", None), row("b", 0.0), row("a", -0.1), row("b", 0.5), row("a", 0.2)]
    assert most_alike(rows, 1) == [rows[4], rows[3]]
    assert most_alike(rows, 9) == [rows[4], rows[2], rows[3], rows[1]]
    assert most_alike([row("a", None), row("a", None)], 1) == []
