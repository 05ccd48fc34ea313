"""Which entries of a KV cache stay when it is full: one idea per file. See docs/kv-cache.md."""

from .by_name import POLICIES, policy_by_name
from .chunk_kv import ChunkKV
from .heavy_hitters import H2O
from .key_diff import KeyDiff
from .key_norm import Knorm
from .lag_kv import LagKV
from .policy import CachePolicy
from .r_kv import RKV
from .scorer import Scorer
from .sinks_and_window import SinksAndWindow
from .snapkv import SnapKV
from .surprise import SirLLM
from .tova import Tova
from .view import CacheView

__all__ = [
    "H2O",
    "POLICIES",
    "RKV",
    "CachePolicy",
    "CacheView",
    "ChunkKV",
    "KeyDiff",
    "Knorm",
    "LagKV",
    "Scorer",
    "SinksAndWindow",
    "SirLLM",
    "SnapKV",
    "Tova",
    "policy_by_name",
]
