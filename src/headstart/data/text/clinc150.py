"""CLINC150: what people ask an assistant, in 150 intents of 10 domains, and questions that are of none."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from headstart.data.fewshot import shuffled
from headstart.data.text.banking77 import Fold, of_fold
from headstart.data.text.read import Labelled
from headstart.data.text.text import text_tasks
from headstart.errors import DataError, FileError, check_known
from headstart.schema import extends
from headstart.types import Tasks

Split = Literal["classes", "domains"]

#: The split of each class, in the order of their names: train, validation, test. One line a fold.
FOLDS = (
    "eeeevetetttvvvtvettvvtvveveeeeevttetvevvttvtevvvetvvveetetettvteveteeeevttt"
    "vttvvvevetveevvttevtvtevevvtvtttteveveeeevvtveetvetettttetttvvetvveeteevtvt",
    "vttevttetetttvettettveeettttveevvtvvttvveetevvetttvvveettevvtvvveeveevtevtt"
    "vttettetvvvevvvvveeeevevveettvvvvtveeeeevetteeevettteetetttvettvvteevvvveet",
    "tvveettvvtevevtveevvvtttvtvetvttteevvtevevtvvtetveetvvevevteevtevtetvvvtvev"
    "veevvvtttttvtvvteeeetvtveeeettetetvevettvvetveevttvtvttteevtevtteeteeeeteee",
    "ettvteevvtvettvetevtveeeeveetvtetvteveeetvteevtevettvvevevtvettteveeveettve"
    "tvevvettvtetvvvvteettvtvvteetvvtteeteeteetvetvvevvtvtvvvtteettvvtvvvvetttee",
    "evvetvtevttvvetveeetteveteeeevttvvttteevetvvtvetvetvvvteevttvvtetevtvetevvv"
    "vvvteevvvttetevtetvvetevevtttetvvtevevtetveveetettetveevvvtteeveetteteevttt",
)

DOMAINS = {
    "banking": (
        "account_blocked balance bill_balance bill_due freeze_account interest_rate min_payment order_checks pay_bill "
        "pin_change report_fraud routing spending_history transactions transfer"
    ).split(),
    "credit_cards": (
        "application_status apr card_declined credit_limit credit_limit_change credit_score damaged_card "
        "expiration_date improve_credit_score international_fees new_card redeem_rewards replacement_card_duration "
        "report_lost_card rewards_balance"
    ).split(),
    "kitchen_and_dining": (
        "accept_reservations calories cancel_reservation confirm_reservation cook_time food_last how_busy "
        "ingredient_substitution ingredients_list meal_suggestion nutrition_info recipe restaurant_reservation "
        "restaurant_reviews restaurant_suggestion"
    ).split(),
    "home": (
        "calendar calendar_update next_song order order_status play_music reminder reminder_update shopping_list "
        "shopping_list_update smart_home todo_list todo_list_update update_playlist what_song"
    ).split(),
    "auto_and_commute": (
        "current_location directions distance gas gas_type jump_start last_maintenance mpg oil_change_how "
        "oil_change_when schedule_maintenance tire_change tire_pressure traffic uber"
    ).split(),
    "travel": (
        "book_flight book_hotel car_rental carry_on exchange_rate flight_status international_visa lost_luggage "
        "plug_type timezone translate travel_alert travel_notification travel_suggestion vaccines"
    ).split(),
    "utility": (
        "alarm calculator date definition find_phone flip_coin make_call measurement_conversion roll_dice "
        "share_location spelling text time timer weather"
    ).split(),
    "work": (
        "direct_deposit income insurance insurance_change meeting_schedule next_holiday payday pto_balance "
        "pto_request pto_request_status pto_used rollover_401k schedule_meeting taxes w2"
    ).split(),
    "small_talk": (
        "are_you_a_bot do_you_have_pets fun_fact goodbye greeting how_old_are_you meaning_of_life tell_joke thank_you "
        "what_are_your_hobbies what_can_i_ask_you what_is_your_name where_are_you_from who_do_you_work_for "
        "who_made_you"
    ).split(),
    "meta": (
        "cancel change_accent change_ai_name change_language change_speed change_user_name change_volume maybe no "
        "repeat reset_settings sync_device user_name whisper_mode yes"
    ).split(),
}
"""The intents of each domain."""
_FILE = "data_full.json"


class Clinc150(NamedTuple):
    """All questions."""

    texts: Labelled
    """The 22,500 questions of the 150 intents."""
    out_of_scope: list[str]
    """The 1,200 that are of none."""


@extends(text_tasks, without=("details",))
def clinc150(data: Path, *, split: Split = "classes", fold: Fold = 1, lower: bool = True, **options: Any) -> Tasks:
    """Tell intents of an assistant's users apart (Larson et al. 2019, arXiv:1909.02027).

    - ``split='classes'``: 50 intents each for training, validation and test, in the five splits of Dopierre, Gravier,
      Logerais 2021 (arXiv:2105.12995), which few-shot papers on intents report.
    - ``split='domains'``: all intents of 4 domains for training, of 3 for validation and of 3 for test; the domains
      are shuffled by the SHA-256 of their names and the fold.

    `read_clinc150` gives the questions that are of no intent; no task has them.

    Args:
        data: the folder that holds ``data_full.json``, as it is published.
        split: whether training, validation and test share domains (but no intents), or not even those.
        fold: which of the five splits.
        lower: whether capital letters become small ones.
        options: those of `headstart.data.text.text.text_tasks`.

    Raises:
        FileError: a file that is missing, or no JSON.
        DataError: a file that does not hold these 150 intents.
    """
    check_known("split", split, get_args(Split))
    found = read_clinc150(Path(data)).texts
    letters = FOLDS[fold - 1] if split == "classes" else _by_domain(fold)
    source = "Larson et al. 2019, arXiv:1909.02027"
    details = {"split": split, "fold": fold, "source": source, "licence": "CC BY 3.0"}
    return text_tasks("clinc150", found, of_fold(found, letters, lower), lower=lower, details=details, **options)


def _by_domain(fold: int) -> str:
    order = [name.partition(" ")[2] for name in shuffled(f"{fold} {name}" for name in DOMAINS)]
    own = {name: letter for domain, letter in zip(order, "ttttvvveee") for name in DOMAINS[domain]}
    return "".join(own[name] for name in sorted(own))


def read_clinc150(data: Path) -> Clinc150:
    """Read ``data_full.json`` in the folder ``data``.

    Raises:
        FileError: a file that is missing, or no JSON.
        DataError: a file that does not hold the six lists of questions and intents.
    """
    path = data / _FILE
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FileError(f"cannot read {path}: it is not a file")
    try:
        found = json.loads(path.read_bytes())
    except OSError as problem:
        raise FileError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise FileError(f"{path} is not JSON: {problem}") from problem
    try:
        rows = {part: [(str(text), str(label)) for text, label in found[part]] for part in ("train", "val", "test")}
        others = [str(text) for part in ("oos_train", "oos_val", "oos_test") for text, _ in found[part]]
    except (TypeError, KeyError, ValueError) as problem:
        raise DataError(
            f"{path} does not hold the lists train, val, test, oos_train, oos_val and oos_test"
        ) from problem
    every = [(part, number, *row) for part, own in rows.items() for number, row in enumerate(own)]
    places = [f"{path}, {part}, number {number}" for part, number, _, _ in every]
    whole = Labelled(str(path), [row[2] for row in every], [row[3] for row in every], [], places.__getitem__, {})
    if set(whole.labels) != {name for names in DOMAINS.values() for name in names}:
        raise DataError(f"{path} does not hold the 150 intents that were published")
    return Clinc150(whole, others)
