// Target registration error of any transform, on landmarks that were not used to make it.

#@ File (label="Transform (clemreg, elastix, ITK, BigWarp)") transform
#@ String (label="Landmarks from", choices={"a table (BigWarp, COSEM, clemreg)", "points on two open images"}, value="a table (BigWarp, COSEM, clemreg)") source
#@ File (label="Table", required=false) table
#@ ImagePlus (label="EM image with its points", required=false) emImage
#@ ImagePlus (label="Light image with the same points, in the same order", required=false) lmImage
#@ String (label="Added to the light coordinates: x, y, z um (empty: nothing)", required=false, value="") offset
#@ String (label="Raters, comma separated (empty: all)", required=false, value="") raters
#@ File (label="Also write the figures to (.json, may be empty)", style="save", required=false) json
#@ Boolean (label="Replace that file", value=false, persist=false) replace
#@ String (label="Python with clemreg (empty: as set up)", visibility=INVISIBLE, required=false, value="") python
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output String report

import ij.gui.PointRoi

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

NM = [nm: 1, um: 1000, micron: 1000, microns: 1000, mm: 1000000]

/** World position of the first voxel, x, y, z in nm: clemreg keeps it as a note in its TIFF files. */
def originOf(image) {
    def note = image.getProp("clemreg-origin-nm-zyx")
    note == null ? [0, 0, 0] : note.trim().split(/\s+/).collect { it as double }.reverse()
}

/** World positions x, y, z of the points on an image, in nm. */
def pointsOf(image, String name) {
    def roi = image?.roi
    if (!(roi instanceof PointRoi)) clemreg.fail("The " + name + " image has no points: use the multi-point tool.")
    def calibration = image.calibration
    if (!calibration.scaled()) clemreg.fail("The " + name + " image has no voxel size: set it with Image > Properties.")
    def factor = NM[calibration.unit.replace("\u00b5", "u")]
    if (factor == null) clemreg.fail("The " + name + " image has the unit " + calibration.unit + ": give it nm or um with Image > Properties.")
    def size = [calibration.pixelWidth, calibration.pixelHeight, calibration.pixelDepth]
    def origin = originOf(image)
    def polygon = roi.floatPolygon
    (0..<polygon.npoints).collect { i ->
        def slice = roi.getPointPosition(i)
        def z = image.convertIndexToPosition(slice > 0 ? slice : image.currentSlice)[1] - 1
        def index = [polygon.xpoints[i], polygon.ypoints[i], z]
        (0..2).collect { origin[it] + index[it] * size[it] * factor }
    }
}

def tableOfPoints() {
    def em = pointsOf(emImage, "EM")
    def lm = pointsOf(lmImage, "light")
    if (em.size() != lm.size()) clemreg.fail(em.size() + " points on the EM, " + lm.size() + " on the light image: they must be pairs.")
    def head = ["Pt-index", "Rater ID", "em-x-nm", "em-y-nm", "em-z-nm", "lm-x-nm", "lm-y-nm", "lm-z-nm"]
    def rows = (0..<em.size()).collect { ["Pt-" + it, "ImageJ"] + em[it] + lm[it] }
    def file = File.createTempFile("clemreg-points", ".csv")
    file.setText(([head] + rows).collect { it.join(",") }.join("\n") + "\n", "UTF-8")
    file
}

clemreg.attempt {
    def fromImages = source.startsWith("points")
    if (!fromImages && table == null) clemreg.fail("Choose the table of landmarks.")
    if (json != null) clemreg.output(json, replace)
    def landmarks = fromImages ? tableOfPoints() : table
    try {
        report = clemreg.run("Landmark accuracy", ["evaluate", "landmarks", "--transform", transform, "--landmarks", landmarks] +
            clemreg.option("--fixed-offset", offset) + clemreg.option("--raters", raters) + clemreg.option("--json", json)).join("\n")
    } finally {
        if (fromImages) landmarks.delete()
    }
    clemreg.tell(report)
}
