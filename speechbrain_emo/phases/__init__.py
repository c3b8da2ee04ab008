"""What trains when."""

from .phase import EpochPosition, Phase, PhaseSchedule, draw_slot_sources

__all__ = ["EpochPosition", "Phase", "PhaseSchedule", "draw_slot_sources"]
