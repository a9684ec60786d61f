"""Components by name: a config can use whatever class a file in the component's package registers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator

from voxelwave.errors import InputError

LONGEST_SHOWN = 200
SECTION_NEEDED = "a section is needed, with keys below it"
Component = TypeVar("Component", bound=type[Any])


class Settings(BaseModel):
    """Values of a config: a yes or no is no number, though Python takes it for one."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, check: Any, info: Any) -> Any:
        checked = check(value)  # which may have more to say
        parts = _parts(cls.model_fields[info.field_name].annotation)
        numbers, bools = (
            any(part is kind for part in parts for kind in kinds) for kinds in ((int, float), (bool, Any))
        )
        if numbers and not bools and _holds_bool(value):
            raise ValueError("a number is wanted, not yes or no")
        return checked


def _parts(annotation: Any) -> list[Any]:
    """Return the types that an annotation is made of."""
    inner = get_args(annotation)
    return [part for one in inner for part in _parts(one)] if inner else [annotation]


def _holds_bool(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_bool, inner))


def shortened(text: str) -> str:
    """Return what fits into the line of an error."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"


def first_problem(error: ValidationError, section: str = "") -> str:
    """Say in one line which key of a config is wrong, what was given and what is wanted."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in (section, *problem["loc"]) if part != "")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    # A section is too long for a line, and its own error says what of it is wrong.
    got = "" if isinstance(problem["input"], dict) else f", got {shortened(repr(problem['input']))}"
    said = SECTION_NEEDED if problem["type"] in ("model_type", "dataclass_type") else problem["msg"]
    return f"key '{key}': {said.removeprefix('Value error, ')}{got}"


class _Strict(Settings):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def check_settings(component: type[Any], given: Mapping[str, Any], section: str, label: str) -> BaseModel:
    """Check `given` against a constructor's keyword-only parameters and fill in its defaults.

    The attributes of what is returned are what the constructor takes, groups of settings among them.
    Raises InputError naming the key (under `section`), what was given and what `label` takes.
    """
    hints = get_type_hints(component.__init__)
    fields: dict[str, Any] = {
        key: (hints[key], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for key, parameter in inspect.signature(component).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    schema: type[BaseModel] = create_model(component.__name__, __base__=_Strict, **fields)
    try:
        return schema.model_validate(dict(given))
    except ValidationError as error:
        raise InputError(
            f"{first_problem(error, section)}; {label} takes: {', '.join(fields) or 'no settings'}"
        ) from None


class Registry:
    """Classes of one kind, by name; their keyword-only parameters are the settings that a config may give."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[Component], Component]:
        """Make the decorated class available as `name`; raises ValueError where the name is taken."""

        def add(component: Component) -> Component:
            if name in self._classes:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._classes[name]}, {component}")
            self._classes[name] = component
            return component

        return add

    def names(self) -> list[str]:
        """All names, sorted; imports every module of the component's package first."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        return sorted(self._classes)

    def get(self, name: str) -> type[Any]:
        """Return the class registered as `name`; raises InputError with the known names."""
        names = self.names()
        if name not in self._classes:
            raise InputError(f"unknown {self.kind} '{name}'; known: {', '.join(names)}")
        return self._classes[name]

    def settings(self, name: str, given: Mapping[str, Any], section: str = "") -> dict[str, Any]:
        """Return all settings of component `name` as plain values; see `check_settings`."""
        return check_settings(self.get(name), given, section, f"{self.kind} '{name}'").model_dump()

    def build(self, name: str, /, *runtime: Any, **settings: Any) -> Any:
        """Construct component `name`; what its constructor refuses becomes an InputError that names it."""
        try:
            checked = check_settings(self.get(name), settings, "", f"{self.kind} '{name}'")
            return self.get(name)(*runtime, **{key: getattr(checked, key) for key in type(checked).model_fields})
        except InputError:
            raise
        except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.kind} '{name}' cannot be built of {shortened(str(settings))}: {reason}") from error


BACKBONES = Registry("backbone", "voxelwave.backbones")
MASKINGS = Registry("masking", "voxelwave.masking")
CONTRASTIVE_LOSSES = Registry("contrastive loss", "voxelwave.losses")
MODALITIES = Registry("modality", "voxelwave.data.modalities")
AUGMENTATIONS = Registry("augmentation", "voxelwave.data.augmentations")
SAMPLINGS = Registry("sampling", "voxelwave.physics.samplings")
EMBEDDINGS = Registry("embedding model", "voxelwave.backbones")
METRIC_LOSSES = Registry("metric loss", "voxelwave.losses")
OBJECTIVES = Registry("objective", "voxelwave.objectives")
RECONSTRUCTIONS = Registry("reconstruction", "voxelwave.unrolled")
RECONSTRUCTION_OBJECTIVES = Registry("objective of reconstruction", "voxelwave.objectives")
MASK_RULES = Registry("rule of a learned mask", "voxelwave.unrolled")
SUBSAMPLED_MODELS = Registry("model behind a subsampling layer", "voxelwave.unrolled")
