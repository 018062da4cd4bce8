"""The commands: what they are for, and where their work is done. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from dfkd.cli import config
from dfkd.defaults import DEFAULT_METHOD

__all__ = ["COMMANDS", "GROUPS", "Command"]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what is typed; the module ``dfkd.cli.do_<name>`` has ``run(settings, tree) -> int``.
        summary: one line.
        settings: dataclass of its options.
        usage: what follows the name.
        word: option that a word without dashes fills.
        examples: (what for, command).
        notes: further paragraphs.
        more: option that further words without dashes fill, a list.
        open: further sections whose options depend on a choice.
        unlisted: options that a recipe may have and this command refuses or does not look at; help leaves them out.
    """

    name: str
    summary: str
    settings: type
    usage: str = "[options]"
    word: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    more: str | None = None
    open: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    @property
    def free(self) -> tuple[str, ...]:
        """Sections whose options depend on a choice."""
        own = ("method",) if "method" in self.settings.__dataclass_fields__ else ()  # type: ignore[attr-defined]
        return (*own, *self.open)


_METHOD = (
    f"Hyper-parameters are options too: --method.steps 40. `dfkd methods {DEFAULT_METHOD}` lists those of a method."
)
_RECIPE = "Every option has the same name in a recipe: --plan.rounds 5 is plan: {rounds: 5}. Flags win."

_ALL = (
    Command(
        "demo",
        "teach, distil and compare on small digits, in about three minutes",
        config.Demo,
        examples=(("the main job, start to end", "dfkd demo"), ("three students", "dfkd demo --seeds 3")),
        notes=(
            "Trains a teacher on scikit-learn's digits, distils a smaller student without touching them again, feeds "
            "the same student pure noise with the same budget, and compares the three on held-out digits.",
        ),
    ),
    Command(
        "teach",
        "train a teacher on labelled images",
        config.Teach,
        "NETWORK --data PRESET|--data.train SOURCE [options]",
        "network.name",
        (
            ("CIFAR-10 in $DFKD_DATA or ./data", "dfkd teach resnet34 --data cifar10 --out teachers/r34"),
            (
                "own images, one folder per class",
                "dfkd teach wrn40-2 --data.train folder:pets --data.image_size 3,32,32",
            ),
        ),
    ),
    Command(
        "inspect",
        "what a network is, and which methods fit it; without a name, the networks there are",
        config.Inspect,
        "[NETWORK|WEIGHTS] [options]",
        "teacher.name",
        (
            ("the networks there are", "dfkd inspect"),
            ("by name", "dfkd inspect resnet34 --data cifar10"),
            ("a pair", "dfkd inspect teachers/r34 --student resnet18"),
            (
                "your own class",
                "dfkd inspect mynets:Big --teacher.weights big.pth --data.classes 12 --data.image_size 3,64,64",
            ),
        ),
    ),
    Command(
        "embed",
        "class names to vectors",
        config.Embed,
        "CLASSES [options]",
        "classes",
        (
            ("a shipped list", "dfkd embed cifar10"),
            ("your own names", 'dfkd embed "tabby cat,sheep dog,hen" --text minilm --out pets.safetensors'),
        ),
    ),
    Command(
        "distill",
        "train a student from a teacher, without the teacher's data",
        config.Distill,
        "[RECIPE] [options]    or    --resume RUN",
        "recipe",
        (
            (
                "a packaged recipe, made shorter",
                "dfkd distill nayer/digits-wrn16-2-wrn16-1 --teacher.weights T --plan.rounds 5",
            ),
            ("your own teacher", "dfkd distill --teacher.weights teachers/r34 --student resnet18 --out runs/x"),
            ("hours, memory and disk first", "dfkd distill my.yaml --dry-run"),
            ("as many rounds as fit two hours", "dfkd distill my.yaml --hours 2"),
            ("until the agreement no longer rises", "dfkd distill my.yaml --patience 20"),
            ("go on after a stop", "dfkd distill --resume runs/x"),
            (
                "save the settings",
                "dfkd distill --student resnet18 --teacher.weights teachers/r34 --print_config > my.yaml",
            ),
        ),
        (_METHOD, _RECIPE),
    ),
    Command(
        "repeat",
        "distil with several seeds: mean, standard deviation, and every run",
        config.Repeat,
        "[RECIPE] --seeds 0,1,2 --out FOLDER [options]",
        "recipe",
        (
            (
                "a packaged recipe, three times",
                "dfkd repeat nayer/digits-wrn16-2-wrn16-1 --teacher.weights T --seeds 0,1,2 --out runs/three",
            ),
        ),
        (
            "Takes what `dfkd distill` takes, but no time to fit. The same command again goes on where it stopped.",
            _METHOD,
        ),
        unlisted=("stop.hours",),
    ),
    Command(
        "search",
        "find settings without test images: many short runs, judged on held-out synthetic images",
        config.Search,
        "[RECIPE] --search.SETTING RANGE ... --out FOLDER [options]",
        "recipe",
        (
            (
                "two settings of a packaged recipe",
                "dfkd search nayer/digits-wrn16-2-wrn16-1 --teacher.weights T --search.method.lr 0.001:0.03:log "
                "--search.plan.batch_size 64,128,256 --trials 30 --out runs/search",
            ),
            ("a second process on the same folder: the same command", "dfkd search my.yaml --out runs/search"),
        ),
        (
            "Takes what `dfkd distill` takes, but no rules that end a run. Ranges are options of the settings they "
            "vary: --search.method.lr 0.001:0.1:log, --search.plan.rounds 5:20, --search.method.memory 1000:5000:1000 "
            "(steps of 1000), --search.method.keep best,last; in a recipe they stand in the section search:. The same "
            "command again goes on where it stopped. Needs the extra search.",
            _METHOD,
        ),
        open=("search",),
        unlisted=("stop.patience", "stop.until_agreement", "stop.hours"),
    ),
    Command(
        "choose",
        "which method and which student for a teacher: sizes, speed, short trials, a recommendation",
        config.Choose,
        "TEACHER [options]",
        "teacher.name",
        (
            ("a teacher of `dfkd teach`, ten minutes of trials", "dfkd choose teachers/r34 --minutes 10"),
            ("only students that take 2 ms for an image", "dfkd choose teachers/r34 --latency 2"),
            ("sizes and speed alone", "dfkd choose resnet34 --teacher.weights r34.pth --data cifar10 --minutes 0"),
        ),
        (
            "Trials are small and minutes long: they tell what learns at all, not what wins after a paper's hours. "
            "They are judged by agreement on images made from the teacher alone, never by test images. Nothing is "
            "written.",
        ),
        unlisted=("data.test",),
    ),
    Command(
        "synthesize",
        "only the images: a PNG folder or one file",
        config.Synthesize,
        "[RECIPE] [options]    or    --run RUN --out FOLDER",
        "recipe",
        (
            ("the newest 5000 images of a run", "dfkd synthesize --run runs/x --count 5000 --out images"),
            ("from a recipe", "dfkd synthesize my.yaml --plan.rounds 5 --format safetensors --out images"),
        ),
        (
            "From a recipe the method runs its whole plan: most methods need a student to make their images.",
            _METHOD,
        ),
    ),
    Command(
        "evaluate",
        "accuracy, loss and agreement of a network on labelled images",
        config.Evaluate,
        "RUN|WEIGHTS [options]",
        "target",
        (
            ("a finished run", "dfkd evaluate runs/x --data.test cifar10"),
            (
                "with agreement",
                "dfkd evaluate student.pth --network resnet18 --teacher.weights teachers/r34 --data.test cifar10",
            ),
        ),
    ),
    Command(
        "export",
        "the student as torch.export, ONNX and INT8 ONNX files, each compared with PyTorch",
        config.Export,
        "RUN|WEIGHTS [options]",
        "run",
        (
            ("everything", "dfkd export runs/x"),
            ("only INT8, for normalised images", "dfkd export runs/x --formats int8 --normalisation outside"),
            ("ranges from pictures of your own", "dfkd export runs/x --images pictures --out phone"),
        ),
        (
            "INT8 is calibrated on the run's synthetic images: no training data are needed. Needs the extra onnx; "
            "without it only the torch.export file is written.",
        ),
    ),
    Command(
        "quantize",
        "a network in 2 to 8 bits: calibrated and trained without its training data",
        config.Quantize,
        "TEACHER|RUN [options]",
        "target",
        (
            ("4 bits, with test images that report", "dfkd quantize teachers/r20 --bits W4A4 --data.test cifar10"),
            ("a distilled student", "dfkd quantize runs/x --bits W6A6 --out runs/x-w6a6"),
            (
                "with the settings and bits of a recipe",
                "dfkd quantize teachers/r20 --recipe nayer/cifar100-resnet20-w5a5",
            ),
            ("go on after a stop: the same, and", "dfkd quantize teachers/r20 --bits W5A5 --out runs/q --resume"),
        ),
        (
            "The network teaches its own quantized copy (ZAQ's quantizers: weights per channel, activations per tensor "
            "after every ReLU) on images that the method makes. Needs the extra quant.",
            _METHOD,
        ),
    ),
    Command(
        "adapt",
        "BatchNorm of a student estimated anew on a few real images, kept where it helps; not data-free",
        config.Adapt,
        "RUN --images FOLDER [options]",
        "run",
        (("64 pictures", "dfkd adapt runs/x --images pictures"),),
        ("Whether it helps is told by agreement with the teacher, on images that were not estimated on. No labels.",),
    ),
    Command(
        "predict",
        "classify image files with the student of a run",
        config.Predict,
        "RUN|OWNER/NAME IMAGES [options]",
        "run",
        (
            ("a folder, as a table", "dfkd predict runs/x pictures --out classes.csv"),
            ("three classes each, as JSON", "dfkd predict runs/x cat.png dog.png --top 3 --format json"),
        ),
        (
            "Pictures are resized and converted as those of test folders. Files that cannot be read are named and left "
            "out.",
        ),
        more="images",
    ),
    Command(
        "push",
        "publish the student of a run on the Hugging Face hub, with a model card from the record",
        config.Push,
        "RUN OWNER/NAME [options]",
        "run",
        (
            ("look at the card first", "dfkd push runs/x me/small-digits --card"),
            ("publish", "dfkd push runs/x me/small-digits --licence apache-2.0 --private"),
        ),
        (
            "One commit with the weights, their description, the program and what `dfkd export` wrote. Needs the extra "
            "hub and a token (HF_TOKEN, or `hf auth login`). `dfkd.load` and `dfkd predict` take the name.",
        ),
        more="to",
    ),
    Command(
        "bench",
        "where the time of a round goes on this machine",
        config.Bench,
        "[RECIPE] [options]",
        "recipe",
        (
            ("a packaged recipe", "dfkd bench nayer/cifar10-resnet34-resnet18"),
            (
                "a smaller budget",
                "dfkd bench nayer/digits-wrn16-2-wrn16-1 --plan.steps 20 --method.steps 10 --rounds 2",
            ),
        ),
        (
            "Takes what `dfkd distill` takes, runs a few rounds without warm-up and keeps nothing. Without weights the "
            "teacher is random, which changes no time, and without --data.test or a recipe's nothing is evaluated.",
            _METHOD,
        ),
    ),
    Command(
        "report",
        "write the HTML page of a run anew, or one page about several runs",
        config.Report,
        "RUN [RUN ...] [options]",
        "run",
        (
            ("of a run that goes on", "dfkd report runs/x"),
            ("runs beside each other", "dfkd report runs/x runs/y --out compare.html"),
        ),
        more="compare",
    ),
    Command(
        "plot",
        "draw the figures and curves of a run, or several runs beside each other",
        config.Plot,
        "RUN [options]    or    --compare RUN,RUN    or    --over SETTING RUN RUN ...",
        "run",
        (
            ("figures for a paper", "dfkd plot runs/x --out paper --format png"),
            ("two methods", "dfkd plot --compare runs/x,runs/y --out paper"),
            ("a sweep, seeds joined by their mean", "dfkd plot --over method.sigma runs/sigma-* --out paper"),
        ),
        (
            "Curves need only the run's metrics. The other figures need its last checkpoint, its teacher and whatever "
            "images it used; --teacher.weights and --data.test say where these are now. What cannot be drawn is named.",
        ),
        more="compare",
    ),
    Command(
        "audit",
        "what a run's images and student show of the private images behind the teacher",
        config.Audit,
        "RUN --private IMAGES [options]",
        "run",
        (
            ("a folder of training images", "dfkd audit runs/x --private pets/train --heldout pets/test"),
            ("a data set by name", "dfkd audit runs/x --private cifar10"),
        ),
        (
            "The nearest private image of every synthetic one, in pixels and in the teacher's features, beside that of "
            "held-out images; and whether the images or the student tell who was among the private ones.",
        ),
    ),
    Command(
        "methods",
        "the methods, or one with its hyper-parameters",
        config.Methods,
        "[NAME]",
        "name",
        (("all", "dfkd methods"), ("one", f"dfkd methods {DEFAULT_METHOD}")),
    ),
    Command(
        "recipes",
        "the packaged recipes, or one as YAML",
        config.Recipes,
        "[NAME]",
        "name",
        (("all", "dfkd recipes"), ("a copy to edit", "dfkd recipes nayer/cifar10-resnet34-resnet18 > my.yaml")),
    ),
    Command("doctor", "versions, devices and extras, with the command that repairs each", config.Doctor),
)

COMMANDS: Mapping[str, Command] = {command.name: command for command in _ALL}

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start here", ("demo", "doctor")),
    (
        "The way from a network to a student",
        ("teach", "inspect", "choose", "embed", "distill", "repeat", "search", "evaluate"),
    ),
    (
        "What comes of a run",
        ("quantize", "adapt", "export", "predict", "push", "synthesize", "report", "plot", "audit"),
    ),
    ("What there is, and how fast", ("methods", "recipes", "bench")),
)
