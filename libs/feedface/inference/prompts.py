"""What may be a prompt."""

from feedface.common.errors import UserError

# Far more than any text encoder reads (CLIP: 77 tokens); what is longer was put here by mistake.
MAX_PROMPT_CHARACTERS = 2000


def check_prompt(prompt: str) -> str:
    """Return the prompt, or raise `UserError` if it is empty, too long or not text that can be stored as UTF-8."""
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is text, not {type(prompt).__name__}")
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the picture, as in 'a woman on a beach'")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"the prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARACTERS} (CLIP reads 77 tokens)"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid UTF-8 text (character {error.start + 1})") from None
    return prompt
