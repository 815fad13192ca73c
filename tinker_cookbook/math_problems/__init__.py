"""Math problems with known answers: data, the form of the answer, and its grading."""
