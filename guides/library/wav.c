/* Streams a WAV file through the model "clipper", one instance a channel, and says how much faster than real time.
 *
 *     lstm-engine export models/clipper/clipper.onnx -o clipper
 *     cc -O2 -Iclipper guides/library/wav.c clipper/clipper.o -lm -o wav
 *     ./wav in.wav out.wav [samples in a call, 1 by default]
 *
 * Takes PCM of 16 bits and floats of 32, any number of channels up to MOST_CHANNELS; writes what it takes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clipper.h"

enum { PCM = 1, IEEE_FLOAT = 3, EXTENSIBLE = 0xFFFE, MOST_CHANNELS = 16 };

struct sound {
    unsigned format, channels, rate, bits;
    size_t frames;    /* samples of each channel */
    float **channel;  /* [channels][frames] */
};

static void fail(const char *path, const char *why)
{
    fprintf(stderr, "%s: %s\n", path, why);
    exit(1);
}

static void *room(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("wav", "not enough memory");
    return memory;
}

/* --- WAV: RIFF, little-endian whatever the machine ---------------------------------------------------------------- */

static unsigned long u32(const unsigned char *b)
{
    return b[0] | (unsigned long)b[1] << 8 | (unsigned long)b[2] << 16 | (unsigned long)b[3] << 24;
}

static unsigned u16(const unsigned char *b) { return b[0] | (unsigned)b[1] << 8; }

static void put(unsigned char *b, unsigned long value, int bytes)
{
    for (int i = 0; i < bytes; i++) b[i] = (unsigned char)(value >> 8 * i);
}

static float decoded(const unsigned char *b, unsigned format)
{
    if (format == PCM) return (float)((int)(u16(b) ^ 0x8000) - 0x8000) / 32768;
    uint32_t word = (uint32_t)u32(b);
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static void encode(unsigned char *b, float value, unsigned format)
{
    if (format == PCM) {
        float scaled = roundf(value * 32768);
        int whole = scaled >= 32767 ? 32767 : scaled >= -32768 ? (int)scaled : -32768; /* NaN, too, is -32768 */
        put(b, (unsigned long)(whole + 0x10000) & 0xFFFF, 2);
    } else {
        uint32_t word;
        memcpy(&word, &value, sizeof word);
        put(b, word, 4);
    }
}

static unsigned char *contents(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    long end;
    if (!file || fseek(file, 0, SEEK_END) || (end = ftell(file)) < 0 || fseek(file, 0, SEEK_SET)) {
        fail(path, "cannot be read");
    }
    *size = (size_t)end;
    unsigned char *bytes = room(*size, 1);
    if (fread(bytes, 1, *size, file) != *size) fail(path, "cannot be read");
    fclose(file);
    return bytes;
}

/* The content of the chunk of that name, NULL if there is none; a chunk that is cut off ends where the file does. */
static const unsigned char *chunk(const unsigned char *riff, size_t size, const char *name, size_t *length)
{
    for (size_t at = 12; size - at >= 8;) {
        size_t left = size - at - 8;
        *length = u32(riff + at + 4) < left ? u32(riff + at + 4) : left;
        if (!memcmp(riff + at, name, 4)) return riff + at + 8;
        at += 8 + *length + (*length & 1 && *length < left);
    }
    return NULL;
}

static struct sound read_sound(const char *path)
{
    struct sound sound;
    size_t size, told, held;
    unsigned char *riff = contents(path, &size);
    if (size < 12 || memcmp(riff, "RIFF", 4) || memcmp(riff + 8, "WAVE", 4)) fail(path, "is no WAV file");
    const unsigned char *format = chunk(riff, size, "fmt ", &told), *data = chunk(riff, size, "data", &held);
    if (!format || told < 16) fail(path, "does not say its format");
    if (!data) fail(path, "has no data");
    sound.format = u16(format) == EXTENSIBLE && told >= 26 ? u16(format + 24) : u16(format);
    sound.channels = u16(format + 2);
    sound.rate = (unsigned)u32(format + 4);
    sound.bits = u16(format + 14);
    if (!(sound.format == PCM && sound.bits == 16) && !(sound.format == IEEE_FLOAT && sound.bits == 32)) {
        fail(path, "is neither PCM of 16 bits nor float of 32");
    }
    if (sound.channels < 1 || sound.channels > MOST_CHANNELS) fail(path, "has no channel, or too many");
    if (!sound.rate) fail(path, "has no sample rate");
    size_t width = sound.bits / 8;
    sound.frames = held / (width * sound.channels);
    sound.channel = room(sound.channels, sizeof *sound.channel);
    for (unsigned c = 0; c < sound.channels; c++) {
        sound.channel[c] = room(sound.frames, sizeof(float));
        for (size_t t = 0; t < sound.frames; t++) {
            sound.channel[c][t] = decoded(data + (t * sound.channels + c) * width, sound.format);
        }
    }
    free(riff);
    return sound;
}

static void write_sound(const char *path, const struct sound *sound)
{
    size_t width = sound->bits / 8, block = width * sound->channels, held = sound->frames * block;
    unsigned char *riff = room(44 + held, 1);
    memcpy(riff, "RIFF----WAVEfmt ", 16);
    put(riff + 4, (unsigned long)(36 + held), 4);
    put(riff + 16, 16, 4);
    put(riff + 20, sound->format, 2);
    put(riff + 22, sound->channels, 2);
    put(riff + 24, sound->rate, 4);
    put(riff + 28, (unsigned long)(sound->rate * block), 4);
    put(riff + 32, (unsigned long)block, 2);
    put(riff + 34, sound->bits, 2);
    memcpy(riff + 36, "data", 4);
    put(riff + 40, (unsigned long)held, 4);
    for (size_t t = 0; t < sound->frames; t++) {
        for (unsigned c = 0; c < sound->channels; c++) {
            encode(riff + 44 + (t * sound->channels + c) * width, sound->channel[c][t], sound->format);
        }
    }
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(riff, 1, 44 + held, file) != 44 + held || fclose(file)) fail(path, "cannot be written");
    free(riff);
}

/* --- the model ---------------------------------------------------------------------------------------------------- */

/* One channel through one instance, in place; `samples` a call. */
static int32_t play(clipper *effect, float *channel, size_t frames, size_t samples)
{
    int32_t result = CLIPPER_OK;
    if (samples == 1) {
        for (size_t t = 0; t < frames && result == CLIPPER_OK; t++) {
            float heard;
            result = clipper_step(effect, channel + t, &heard);
            channel[t] = heard;
        }
        return result;
    }
    float *heard = room(samples, sizeof *heard);
    for (size_t t = 0; t < frames && result == CLIPPER_OK; t += samples) {
        size_t count = frames - t < samples ? frames - t : samples;
        result = clipper_feed(effect, count, channel + t, heard);
        if (result == CLIPPER_OK) memcpy(channel + t, heard, count * sizeof *heard);
    }
    free(heard);
    return result;
}

int main(int count, char **words)
{
    char *end = "";
    unsigned long samples = count == 4 ? strtoul(words[3], &end, 10) : 1;
    if (count < 3 || count > 4 || *end || samples < 1 || samples > 1ul << 20) {
        fprintf(stderr, "usage: %s in.wav out.wav [samples in a call]\n", count ? words[0] : "wav");
        return 2;
    }
    static clipper effects[MOST_CHANNELS]; /* as the type asks for its alignment */
    struct sound sound = read_sound(words[1]);
    clock_t start = clock();
    for (unsigned c = 0; c < sound.channels; c++) {
        int32_t result = clipper_init(&effects[c], sizeof effects[c]);
        if (result == CLIPPER_OK) result = play(&effects[c], sound.channel[c], sound.frames, samples);
        if (result != CLIPPER_OK) {
            fprintf(stderr, "clipper: result %d\n", (int)result);
            return 1;
        }
    }
    double taken = (double)(clock() - start) / CLOCKS_PER_SEC, lasts = (double)sound.frames / sound.rate;
    write_sound(words[2], &sound);
    printf("%lu samples a call: %.2f s of sound in %.4f s", samples, lasts, taken);
    if (taken > 0) printf(", %.0f times faster than real time", lasts / taken);
    printf("\n");
    return 0;
}
