"""`dfkd push`."""

from pathlib import Path

from dfkd.cli.config import Push
from dfkd.deploy.card import card_of
from dfkd.deploy.publish import push
from dfkd.errors import UserError

__all__ = ["run"]


def run(settings: Push) -> int:
    """Publish the student of a run on the Hugging Face hub."""
    names = settings.to or []
    if settings.run is None or len(names) != 1:
        raise UserError(
            f"push needs a run folder and one name, got {settings.run} and {len(names)}; for example "
            "`dfkd push runs/x owner/name`"
        )
    if settings.card:
        print(card_of(Path(settings.run), names[0], settings.licence), end="")
        return 0
    print(push(settings.run, names[0], private=settings.private, licence=settings.licence))
    return 0
