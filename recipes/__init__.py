"""Recipes: one folder a corpus. Here is what finds and calls them by name."""

import importlib
import inspect
import pkgutil
from functools import partial
from pathlib import Path

from speechbrain_emo.dataio.manifest import ManifestError
from speechbrain_emo.dataio.preparation import prepare_corpora


def recipe_names():
    """Recipes with a preparation, sorted.

    Returns
    -------
    list of str

    Example
    -------
    >>> {"EmoDB", "Generic", "MELD"} <= set(recipe_names())
    True
    """
    found = (m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)
    return sorted(n for n in found if (Path(__path__[0]) / n / f"{n.lower()}_prepare.py").is_file())


def find_preparation(name):
    """The preparation of a corpus.

    Arguments
    ---------
    name : str
        Name of the recipe's folder; case does not matter.

    Returns
    -------
    callable
        ``prepare_<name>``.

    Raises
    ------
    ManifestError
        If there is no such recipe.

    Example
    -------
    >>> find_preparation("ravdess").__name__
    'prepare_ravdess'
    """
    known = {n.lower(): n for n in recipe_names()}
    if str(name).lower() not in known:
        raise ManifestError(f"no recipe {name!r}; there are {', '.join(known.values())}")
    folder = known[str(name).lower()]
    module = importlib.import_module(f"recipes.{folder}.{folder.lower()}_prepare")
    return getattr(module, f"prepare_{folder.lower()}")


def prepare_recipes(
    recipes,
    data_folder,
    save_folder,
    fold=None,
    seed=0,
    descriptor_cache=None,
    labels=None,
    label_map=None,
    test_corpora=None,
    folders=None,
    skip_missing=False,
):
    """Prepare one corpus, or several as one, by name: what ``prepare`` of ``hparams/ser_ib.yaml`` calls.

    Arguments
    ---------
    recipes : dict
        Recipe -> further arguments of its preparation.
    data_folder : str or pathlib.Path
        The corpus's folder; for several, the folder that theirs are in, each called as its recipe.
    save_folder : str or pathlib.Path
        Folder of the manifests.
    fold : str, optional
        Given to preparations that have folds and whose own arguments do not name one.
    seed : int
        Given to preparations that take one.
    descriptor_cache : str or pathlib.Path, optional
        File of measurements of one corpus; of several, each has its own.
    labels, label_map, test_corpora, folders, skip_missing :
        For several: as in :func:`speechbrain_emo.dataio.preparation.prepare_corpora`.

    Returns
    -------
    speechbrain_emo.dataio.preparation.Preparation

    Raises
    ------
    ManifestError
        If there is no recipe, or an argument that it does not take.

    Example
    -------
    >>> prepare_recipes({"RAVDESS": {"numfolds": 6}}, "x", "y")
    Traceback (most recent call last):
    speechbrain_emo.dataio.manifest.ManifestError: RAVDESS: no argument 'numfolds'; it takes fold, num_folds, ...
    """
    if not recipes:
        raise ManifestError(
            "recipes is empty: name a corpus, for example --overlay=hparams/corpora/ravdess.yaml, or "
            "--recipes='{Generic: {}}' for a table or folder of your own"
        )
    common = {"fold": fold, "seed": seed}
    if len(recipes) == 1:
        common["descriptor_cache"] = descriptor_cache
    calls = {name: bind_preparation(name, {**(options or {})}, common) for name, options in recipes.items()}
    if len(calls) == 1:
        if label_map is not None:
            raise ManifestError(
                "label_map is for several corpora; the recipe Generic takes one among its arguments"
            )
        (call,) = calls.values()
        return call(data_folder=data_folder, save_folder=save_folder)
    return prepare_corpora(
        data_folder, save_folder, calls, folders, skip_missing, label_map, labels, test_corpora
    )


def bind_preparation(name, options, common=None):
    """A preparation with its arguments, checked.

    Arguments
    ---------
    name : str
        Recipe.
    options : dict
        Arguments; one that the preparation does not take is an error.
    common : dict, optional
        Arguments that are given where the preparation takes them and ``options`` does not name them; None is not given.

    Returns
    -------
    callable
        To be called with ``data_folder`` and ``save_folder``.

    Raises
    ------
    ManifestError
        If an argument is unknown.
    """
    prepare = find_preparation(name)
    takes = [p for p in inspect.signature(prepare).parameters if p not in ("data_folder", "save_folder")]
    for option in options:
        if option not in takes:
            raise ManifestError(f"{name}: no argument {option!r}; it takes {', '.join(takes)}")
    given = {k: v for k, v in (common or {}).items() if k in takes and v is not None}
    return partial(prepare, **{**given, **options})
