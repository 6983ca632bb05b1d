"""The rules of what to keep, as text."""

import pytest

from keepstep.config import KeepPolicy, parse_keep
from keepstep.config.keep import Best, EverySeconds, EverySteps, Last, Tagged
from keepstep.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("all", ()),
        ("last=3", (Last(3),)),
        ("every=1h", (EverySeconds(3600.0),)),
        ("every=90s", (EverySeconds(90.0),)),
        ("every=1000steps", (EverySteps(1000),)),
        ("every=1000", (EverySteps(1000),)),
        ("best=val_loss:min:2", (Best("val_loss", "min", 2),)),
        ("best=accuracy:max", (Best("accuracy", "max", 1),)),
        ("tag=release", (Tagged("release"),)),
        ("last=2, tag=a,last=2", (Last(2), Tagged("a"))),
        (
            "last=3,every=1h,best=val_loss:min:2",
            (Last(3), EverySeconds(3600.0), Best("val_loss", "min", 2)),
        ),
    ],
)
def test_rules_are_read_and_written_alike(text: str, rules: tuple[object, ...]) -> None:
    policy = parse_keep(text)
    assert policy.rules == rules
    assert parse_keep(str(policy)) == policy
    assert policy.keeps_all == (text == "all")


@pytest.mark.parametrize(
    "text",
    [
        *("", "last", "last=", "last=0", "last=-1", "last=two", "lats=3", "every=", "every=0"),
        *("every=auto", "every=2fortnights", "best=", "best=loss", "best=loss:least", "best=:min"),
        *("best=loss:min:0", "best=loss:min:2:3", "tag=", "tag=a b", "last=3,,tag=a", "all=1"),
    ],
)
def test_what_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a rule of what to keep: write last=3"):
        parse_keep(text)


def test_all_beside_another_rule_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="all keeps everything; leave out the other rules"):
        parse_keep("last=3,all")


def test_a_policy_without_rules_is_all() -> None:
    assert str(KeepPolicy()) == "all"
