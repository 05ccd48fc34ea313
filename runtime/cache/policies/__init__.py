"""Which entries of a KV cache stay when it is full: one idea per file. See docs/kv-cache.md."""

from .by_name import policy_by_name
from .chunk_kv import ChunkKV
from .critical_kv import CriticalKV
from .expected_attention import ExpectedAttention
from .heavy_hitters import H2O
from .key_diff import KeyDiff
from .key_norm import Knorm
from .kv_crush import KVCrush
from .kvzip import KVzip
from .lag_kv import LagKV
from .policy import CachePolicy
from .r_kv import RKV
from .scorer import Scorer
from .sinks_and_window import SinksAndWindow
from .snapkv import SnapKV
from .surprise import SirLLM
from .threshold import ThresholdBudget
from .token_select import TokenSelect
from .tova import Tova
from .view import CacheView

__all__ = [
    "H2O",
    "RKV",
    "CachePolicy",
    "CacheView",
    "ChunkKV",
    "CriticalKV",
    "ExpectedAttention",
    "KVCrush",
    "KVzip",
    "KeyDiff",
    "Knorm",
    "LagKV",
    "Scorer",
    "SinksAndWindow",
    "SirLLM",
    "SnapKV",
    "ThresholdBudget",
    "TokenSelect",
    "Tova",
    "policy_by_name",
]
