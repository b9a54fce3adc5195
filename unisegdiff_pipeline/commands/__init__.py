"""The console scripts: parse, build a dataclass, call one public function, say where the result lies."""
