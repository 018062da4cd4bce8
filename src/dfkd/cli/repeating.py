"""The options of ``dfkd repeat``. Imports no torch."""

from dataclasses import dataclass, field

from dfkd.engine.plan import Plan
from dfkd.settings import Images, Machine, MethodChoice, Network, Stopping, Text, Watching

__all__ = ["Repeat"]


@dataclass
class Repeat:
    """`dfkd repeat`."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # one run for each, in OUT/seed<number>
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)
    stop: Stopping = field(default_factory=Stopping)
    out: str | None = None  # folder of the runs; those that are finished there are passed over, others go on
