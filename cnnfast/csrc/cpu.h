/* Which instruction sets the processor has and the operating system saves: 1 or 0 each. */
#ifndef CNNFAST_CPU_H
#define CNNFAST_CPU_H

int cpu_has_x86_64_v2(void);
int cpu_has_x86_64_v3(void);
int cpu_has_x86_64_v4(void);
int cpu_has_aarch64(void);

#define CPU_BRAND_BYTES 49

/* Write the processor's name with a terminating zero; empty where it has none to tell. */
void cpu_brand(char text[CPU_BRAND_BYTES]);

#endif
