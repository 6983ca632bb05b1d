"""How acts are played: a function for each type of act, which gets the stage and the act."""
