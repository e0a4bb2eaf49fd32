// How many cores this process may use: affinity, hardware threads of a core, and the quota of its control group.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu.h"

namespace corral {
namespace {

#if defined(__linux__)

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// The affinity mask: as large as the kernel's own, which may exceed cpu_set_t's 1024 processors.
std::set<int> allowed_processors() {
    for (int size = CPU_SETSIZE; size <= CPU_SETSIZE * 64; size *= 2) {
        cpu_set_t* mask = CPU_ALLOC(size);
        if (mask == nullptr) break;
        std::set<int> processors;
        const size_t bytes = CPU_ALLOC_SIZE(size);
        const bool fits = sched_getaffinity(0, bytes, mask) == 0;
        for (int i = 0; fits && i < size; ++i)
            if (CPU_ISSET_S(i, bytes, mask)) processors.insert(i);
        CPU_FREE(mask);
        if (fits) return processors;
    }
    return {};
}

// Processors of one core have the same list of siblings, e.g. "0,32".
int physical_cores() {
    std::set<std::string> cores;
    for (int processor : allowed_processors()) {
        const std::string number = std::to_string(processor);
        const std::string siblings =
            first_line("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? number : siblings);
    }
    return static_cast<int>(cores.size());
}

// Processors' worth of time that one control group grants, or infinity. Version 2: "max 100000" or "150000 100000".
double group_quota(const std::string& folder) {
    constexpr double kNone = 1e9;
    std::istringstream both(first_line(folder + "/cpu.max"));
    std::string quota;
    double period = 0;
    if (!(both >> quota >> period)) {
        quota = first_line(folder + "/cpu.cfs_quota_us");
        period = std::atof(first_line(folder + "/cpu.cfs_period_us").c_str());
    }
    const double granted = std::atof(quota.c_str());
    return granted > 0 && period > 0 ? granted / period : kNone;
}

// The least quota of the process's control group and those around it. A line of /proc/self/cgroup is "id:controllers:path";
// inside a container the path may be the host's, so the mount's own root counts too.
double quota() {
    double least = group_quota("/sys/fs/cgroup");
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool unified = controllers == ",,";
        if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
        const std::string mount = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
            least = std::min(least, group_quota(mount + (path == "/" ? "" : path)));
            if (path.rfind('/') == std::string::npos) break;
        }
    }
    return least;
}

#else

int physical_cores() { return static_cast<int>(std::thread::hardware_concurrency()); }
double quota() { return 1e9; }

#endif

}  // namespace

// A quota is rounded down: with a thread more, all of them stop for the rest of each period, in the middle of a step.
int usable_cores() {
    const double limit = std::min<double>(physical_cores(), quota());
    return std::max(1, static_cast<int>(limit));
}

}  // namespace corral
