"""YAML files of texts: what a person may write instead of JSON. They need the package pyyaml, the extra `yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_bytes

YAML_ENDINGS = (".yaml", ".yml")


def read_yaml_object(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, of which every value is the text that stands there: `no` is no boolean.

    Nothing is built but texts, lists and dictionaries, whatever tags the file holds; aliases are refused.

    Raises:
        UsdError: pyyaml is not installed, or the file is missing or no such YAML, or a key stands twice in one mapping;
            names the file and the line.
    """
    try:
        import yaml
    except ImportError:
        raise UsdError(
            f"{path} is YAML, which needs pyyaml; install it (pip install pyyaml), or write the same as JSON."
        ) from None

    def refused(problem: str, mark: Any) -> UsdError:
        where = "" if mark is None else f", line {mark.line + 1}"
        return UsdError(f"{path}{where}: {problem}; correct the file.")

    def built(node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if isinstance(node, yaml.SequenceNode):
            return [built(value) for value in node.value]
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise refused("a key must be a text", key.start_mark)
            if key.value in found:
                raise refused(f"the key {key.value!r} stands twice", key.start_mark)
            found[key.value] = built(value)
        return found

    content = read_bytes(path)
    try:
        aliases = [event for event in yaml.parse(content) if isinstance(event, yaml.AliasEvent)]
        if aliases:
            raise refused("aliases (*name) are not read, write out what they stand for", aliases[0].start_mark)
        root = yaml.compose(content)  # None of a file that holds nothing but comments
        result = None if root is None else built(root)
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise refused(f"no YAML that can be read ({problem})", getattr(error, "problem_mark", None)) from None
    if not isinstance(result, dict):
        raise UsdError(f"{path} must hold a mapping, as in 'SOURCE: {{class: class}}'; restore or rewrite it.")
    return result
