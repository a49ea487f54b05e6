"""From overrides to configurations: check them, and compose many jobs for the price of a few.

Composing costs Hydra some 50 ms. It is done once for each distinct choice of groups; each distinct value is read and
converted once, by the same typed nodes, and set on a copy of the dataclass that they make.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bpexp import spec
from bpexp.init import unknown_choice
from bpexp.spec import UserError
from bpexp.validation import wrong_type

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def parse(arguments: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parse overrides with Hydra's own grammar.

    Raises:  UserError: an argument that is not one
    """
    parser = OverridesParser.create(config_loader=loader)
    return [_parse_one(parser, argument) for argument in arguments]


def _parse_one(parser: OverridesParser, argument: str) -> Override:
    name, equals, value = argument.partition("=")
    if not equals and not argument.startswith("~"):
        raise UserError(f"{argument}: not an argument; write key=value")
    try:
        return parser.parse_overrides([argument])[0]
    except HydraException:
        raise UserError(f"{name}: cannot read {value!r}; quote it for Hydra, as in '{name}=\"{value}\"'") from None


class Setting(NamedTuple):
    """An override of a job: the key or the group that it sets, to what, and how it was written."""

    name: str
    value: Any
    line: str


WHOLE_NUMBER = re.compile(r"([a-z_]\w*(?:\.[a-z_]\w*)*)=(0|[1-9]\d{0,17})", re.ASCII)
"""What needs no parser, which takes half a millisecond: the seeds of a sweep can be a thousand."""

DEPENDENT = re.compile(r"\$\{|\?\?\?")
"""What a value has in it that is not known by itself: an interpolation, or that it is missing."""


class Composer:
    """Composes the jobs of one experiment.

    `schema` declares the keys; `groups` are the options of each group among them.
    """

    def __init__(self, loader: ConfigLoader, hydra_overrides: Sequence[str], schema: type) -> None:
        self.loader = loader
        self.hydra_overrides = list(hydra_overrides)
        self.keys: Mapping[str, spec.Key] = spec.keys(schema)
        names = [name for name in self.keys if name.endswith(".name")]
        self.groups = {name.removesuffix(".name"): self.keys[name].choices for name in names}
        self._parser = OverridesParser.create(config_loader=loader)
        self._setting = functools.cache(self._read_setting)
        self._base = functools.cache(self._compose_groups)
        self._template = functools.cache(self._make_template)
        self._converted = functools.cache(self._convert)
        self._scratch: DictConfig | None = None

    def check(self, override: Override) -> None:
        """Refuse an override of a key, or a choice of an option, that does not exist.

        Raises:  UserError: naming what was meant
        """
        name = override.key_or_group
        if override.is_hydra_override():
            self._check_hydra(override)
            return
        if override.package is not None or override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(f"{override.input_line}: keys are neither added nor deleted; write key=value")
        if name in self.groups:
            self._check_options(override)
        elif name.endswith(".name") and name in self.keys:
            raise UserError(f"{name}: set by the option; write {name.removesuffix('.name')}=OPTION")
        elif name not in self.keys:
            raise self._unknown_key(name)
        elif override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{name}: {override.get_value_string()} cannot be enumerated; write values or a range()")

    def _check_hydra(self, override: Override) -> None:
        name = override.key_or_group
        if override.is_sweep_override():
            raise UserError(f"{name}: Hydra's own settings take one value")
        if name in ("hydra/launcher", "hydra/sweeper") and override.value() not in self.loader.get_group_options(name):
            raise UserError(str(unknown_choice(name, str(override.value()), self.loader.get_group_options(name))))

    def _check_options(self, override: Override) -> None:
        name = override.key_or_group
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
        for value in values:
            if value not in self.groups[name]:
                raise UserError(str(unknown_choice(name, str(value), self.groups[name])))

    def _unknown_key(self, name: str) -> UserError:
        if inner := [key for key in self.keys if key.startswith(f"{name}.")]:
            return UserError(f"{name}: a group of keys; set one of {', '.join(inner)}")
        words = {key.rpartition(".")[2]: key for key in self.known()}
        last = name.rpartition(".")[2]
        near = difflib.get_close_matches(name, self.known(), n=1) or [
            words[word] for word in difflib.get_close_matches(last, words, n=1)
        ]
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(self.known())}"
        return UserError(f"{name}: unknown key; {hint}")

    def known(self) -> list[str]:
        """Return what can be set: the groups, and the keys but for the options' names."""
        return [*self.groups, *(name for name in self.keys if not name.endswith(".name"))]

    def compose(self, overrides: Sequence[str]) -> Any:
        """Return the typed configuration of one job, as Hydra itself would compose it.

        Raises:  UserError: a value of the wrong type
        """
        settings = [self._setting(override) for override in overrides]
        choices = tuple(one.line for one in settings if one.name in self.groups or one.name == "experiment")
        settings = [one for one in settings if one.name in self.keys]
        template = self._template(choices)
        if template is None or any(DEPENDENT.search(one.line) for one in settings):
            return self._compose_whole(choices, settings)
        config = _copy(template)
        for one in settings:
            group, _, last = one.name.rpartition(".")
            setattr(getattr(config, group) if group else config, last, self._converted(one.line))
        return config

    def _read_setting(self, override: str) -> Setting:
        if plain := WHOLE_NUMBER.fullmatch(override):
            return Setting(plain[1], int(plain[2]), override)
        parsed = _parse_one(self._parser, override)
        return Setting(parsed.key_or_group, parsed.value(), parsed.input_line or "")

    def _compose_whole(self, choices: tuple[str, ...], settings: Sequence[Setting]) -> Any:
        config = copy.deepcopy(self._base(choices))
        for one in settings:
            self._set(config, one)
        return OmegaConf.to_object(config)

    def _compose_groups(self, choices: tuple[str, ...]) -> DictConfig:
        config = self.loader.load_configuration("config", [*self.hydra_overrides, *choices], RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return config

    def _make_template(self, choices: tuple[str, ...]) -> Any:
        """Return the configuration of these choices; None where a value of theirs depends on others."""
        base = self._base(choices)
        if self._scratch is None:
            self._scratch = copy.deepcopy(base)
        return None if DEPENDENT.search(OmegaConf.to_yaml(base)) else OmegaConf.to_object(base)

    def _convert(self, line: str) -> Any:
        """Return a value as the typed node of its key holds it; those nodes are the same whatever was chosen."""
        one = self._setting(line)
        assert self._scratch is not None
        self._set(self._scratch, one)
        return OmegaConf.select(self._scratch, one.name)

    def _set(self, config: DictConfig, one: Setting) -> None:
        try:
            OmegaConf.update(config, one.name, one.value, merge=True)
        except OmegaConfBaseException:
            raise wrong_type(self.keys[one.name], one.value) from None


def _copy(config: Any) -> Any:
    """Return a copy of a dataclass of values and of dataclasses of values."""
    copied = copy.copy(config)
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            setattr(copied, name, copy.copy(value))
    return copied
