"""Workers that outlive a search: the next search of a catalogue need not load the compiler again."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

from maskwright.autotune.child import Child


@dataclass
class Spares:
    """Idle workers by their module; whoever makes one of these closes it."""

    kept: dict[str, list[Child]] = field(default_factory=dict)

    def take(self, module: str) -> Child | None:
        """A worker that is alive and waits for a job, if there is one."""
        kept = self.kept.get(module, [])
        while kept:
            child = kept.pop()
            if child.alive:
                return child
            child.kill()
        return None

    def keep(self, module: str, child: Child) -> None:
        """For the next search; one that is still at work is ended instead."""
        if child.idle:
            self.kept.setdefault(module, []).append(child)
        else:
            child.kill()

    def close(self) -> None:
        """End all."""
        for children in self.kept.values():
            while children:
                children.pop().kill()
