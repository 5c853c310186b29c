"""A small taxonomy, and nobody who listens to progress."""

from psychocounsel.corpus.topics import Taxonomy

SMALL = Taxonomy.model_validate(
    {
        "version": "1",
        "language": "en",
        "topics": [
            {
                "id": "body",
                "name": "Body",
                "fine": [
                    {
                        "id": "sleep",
                        "name": "Sleep",
                        "description": "Nights without rest.",
                        "cues": ["insomnia", "can't sleep", "wide awake"],
                        "hints": ["night*"],
                    },
                    {
                        "id": "panic",
                        "name": "Panic",
                        "description": "Costs $5 & a breath.",
                        "cues": ["panic*", "heart attack*"],
                        "hints": ["heart"],
                    },
                ],
            },
            {
                "id": "others",
                "name": "Others",
                "fine": [
                    {
                        "id": "friends",
                        "name": "Friends",
                        "description": "Having them or not.",
                        "cues": ["my friend*", "panic buying", "wide awake together", "panicky"],
                        "hints": ["friend*"],
                    }
                ],
            },
        ],
    }
)


def ignore(_done: int) -> None:
    return None
