import warnings

import pytest

from zeromuon.base.warn import warn


def test_it_warns_where_it_was_called():
    with pytest.warns(UserWarning, match="^of one rank$") as caught:
        warn("of one rank")
    assert caught[0].filename == __file__


def test_where_warnings_are_errors_it_is_printed_and_the_rank_goes_on(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("of one rank")
    assert capsys.readouterr().err == "warning: of one rank\n"
