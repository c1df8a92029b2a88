/*
 * Marks for valgrind's callgrind, as a library: `begin` starts to look at instructions, `toggle` collects them or not.
 * Without valgrind both do nothing.
 */
#include <valgrind/callgrind.h>

void begin(void);
void toggle(void);

void begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

void toggle(void)
{
    CALLGRIND_TOGGLE_COLLECT;
}
