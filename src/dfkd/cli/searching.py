"""The options of ``dfkd search`` and ``dfkd choose``. Imports no torch."""

from dataclasses import dataclass, field

from dfkd.engine.plan import Plan
from dfkd.settings import Images, Machine, MethodChoice, Network, Stopping, Text, Watching

__all__ = ["Choose", "Search"]


@dataclass
class Search:
    """`dfkd search`."""

    recipe: str | None = None  # YAML file, or a name from `dfkd recipes`; its section search: holds ranges
    trials: int = 20  # of the whole search, over all processes on its folder
    minutes: float | None = None  # after them this process begins no trial
    prune: bool = True  # end trials that are behind the median of earlier ones, at every tenth of their rounds
    teacher: Network = field(default_factory=Network)
    student: Network = field(default_factory=Network)
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    method: MethodChoice = field(default_factory=MethodChoice)
    plan: Plan = field(default_factory=Plan)
    runtime: Machine = field(default_factory=Machine)
    watch: Watching = field(default_factory=Watching)
    stop: Stopping = field(default_factory=Stopping)
    out: str | None = None  # folder of the search; the same command goes on with what is there, also beside another


@dataclass
class Choose:
    """`dfkd choose`."""

    teacher: Network = field(default_factory=Network)
    students: list[str] | None = None  # networks to choose among; default those of the zoo (and timm) that are smaller
    minutes: float = 5.0  # for all trials together; 0: none
    latency: float | None = None  # most milliseconds for one image, on this machine
    parameters: int | None = None  # most parameters
    data: Images = field(default_factory=Images)
    text: Text = field(default_factory=Text)
    runtime: Machine = field(default_factory=Machine)
    json: bool = False  # machine-readable
