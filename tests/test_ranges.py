"""Ranges of settings: how they are read, what they hold, what is refused before any trial."""

import re
from collections.abc import Mapping

import pytest

import dfkd
from dfkd.engine.exchange import Exchange
from dfkd.errors import UserError
from dfkd.tune.ranges import Range, check_ranges, settings_with, value_of

METHOD, PLAN = dfkd.NAYER(), dfkd.Plan()


def read(**told: str) -> dict[str, Range]:
    return check_ranges({name.replace("__", "."): text for name, text in told.items()}, METHOD, PLAN)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("method__lr", "1e-3:0.1:log", Range(0.001, 0.1, log=True)),
        ("method__alpha_bn", "0:10", Range(0.0, 10.0)),
        ("plan__rounds", "5:20", Range(5, 20)),
        ("plan__rounds", "5:20:5", Range(5, 20, step=5)),
        ("plan__steps", "10:1000:log", Range(10, 1000, log=True)),
        ("method__memory", "null,1000,2000", Range(choices=(None, 1000, 2000))),
        ("method__memory", "1000:2000", Range(1000, 2000)),
        ("method__keep", "best, last", Range(choices=("best", "last"))),
        ("method__mask", "true,false", Range(choices=(True, False))),
        ("plan__lr", "[0.1,0.2]", Range(choices=(0.1, 0.2))),
        ("plan__clip", "0.5:5", Range(0.5, 5.0)),
    ],
)
def test_a_range_is_read_and_written_again(name: str, text: str, wanted: Range) -> None:
    (found,) = read(**{name: text}).values()
    assert found == wanted
    assert found.whole == (not wanted.choices and isinstance(wanted.low, int))
    assert check_ranges({name.replace("__", "."): str(found)}, METHOD, PLAN) == read(**{name: text})


def test_what_a_range_holds() -> None:
    assert 5 in Range(5, 20)
    assert 20 in Range(5, 20)
    assert 21 not in Range(5, 20)
    assert 7 not in Range(5, 20, step=5)
    assert 0.3 in Range(0.0, 1.0, step=0.1)
    assert None in Range(choices=(None, 3))
    assert True not in Range(0, 5)
    assert 1 not in Range(choices=(True, False))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "at least one setting to vary, got none"),
        ({"method.lrr": "1:2"}, "got method.lrr; did you mean method.lr"),
        ({"lr": "1:2"}, r"got lr; did you mean method.lr or plan.lr\?|got lr; did you mean .*lr"),
        ({"student.name": "a,b"}, "a setting of the method or the plan, got student.name"),
        ({"method.lr": "0.1:0.1"}, "LOW below HIGH, got '0.1:0.1'; it is empty"),
        ({"method.lr": "0.2:0.1"}, "it is empty: swap the ends"),
        ({"method.lr": "0:0.1:log"}, "above 0 on a logarithmic scale"),
        ({"method.lr": "a:b"}, "method.lr as numbers"),
        ({"method.lr": "0.1"}, "at least two different values of method.lr"),
        ({"method.lr": "0.1,0.1"}, "at least two different values"),
        ({"method.lr": "-1:1"}, "a range of method.lr that is allowed, got -1.0"),
        ({"method.lr": "0.1:inf"}, "a finite range of method.lr"),
        ({"method.lr": "1:2:3:4"}, "as LOW:HIGH"),
        ({"plan.rounds": "1.5:3"}, "plan.rounds as whole numbers"),
        ({"plan.rounds": "0:3"}, "allowed, got 0: plan needs rounds"),
        ({"plan.rounds": "5:8:9"}, "a step of plan.rounds above 0 and up to HIGH - LOW"),
        ({"plan.rounds": "a,b"}, "plan.rounds to be among whole numbers"),
        ({"method.keep": "best,worst"}, "method.keep to be among best,last"),
        ({"method.keep": "1:2"}, "method.keep to be among best,last"),
        ({"method.betas": "0.5:0.9"}, "a setting with one value, got method.betas"),
        ({"plan.milestones": "1,2"}, "a setting with one value"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(told: Mapping[str, str], said: str) -> None:
    with pytest.raises(UserError, match=f"search needs .*(?:{said})") as caught:
        check_ranges(told, METHOD, PLAN)
    assert "\n" not in str(caught.value)


def test_values_are_put_where_they_belong() -> None:
    inner = Exchange(of=METHOD)
    method, plan = settings_with(inner, PLAN, {"method.of.lr": 0.5, "plan.rounds": 7})
    assert isinstance(method.of, dfkd.NAYER)
    assert (method.of.lr, plan.rounds) == (0.5, 7)
    assert (value_of(method, plan, "method.of.lr"), value_of(method, plan, "plan.rounds")) == (0.5, 7)
    assert METHOD.lr != 0.5
    assert check_ranges({"method.of.lr": "0.1:1"}, inner, PLAN) == {"method.of.lr": Range(0.1, 1.0)}
    with pytest.raises(UserError, match=re.escape("did you mean method.of.lr")):
        check_ranges({"method.off.lr": "0.1:1"}, inner, PLAN)
