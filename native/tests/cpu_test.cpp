#include "cpu.h"

#include <cstring>
#include <string>

#include "check.h"

// The argument, if there is one: which set must be the best.
int main(int argc, char** argv) {
    using namespace corral;
    const char* error = nullptr;
    const std::string names = supported_names();

    const Kernels* best = pick(nullptr, &error);
    CHECK(best != nullptr && error == nullptr);
    CHECK(names.rfind(best->name, 0) == 0);         // the first of the supported
    CHECK(pick("", &error) == best);
    CHECK(argc < 2 || std::strcmp(best->name, argv[1]) == 0);
    CHECK(names.find("generic") != std::string::npos);
    CHECK(std::strcmp(pick("generic", &error)->name, "generic") == 0);

    CHECK(pick("abacus", &error) == nullptr);
    CHECK(std::string(error).find("CORRAL_ISA is 'abacus'") == 0);
    CHECK(std::string(error).find(names) != std::string::npos);
    CHECK(pick(std::string(1000, 'x').c_str(), &error) == nullptr);

    CHECK(usable_cores() >= 1);
    std::printf("%s; %d cores\n", names.c_str(), usable_cores());
}
